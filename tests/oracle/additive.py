"""Bottlenecks, Compacter, (IA)³, ReFT and gates as AdapterHub and peft write them."""

import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from tests.oracle.cases import Case, Converted, Tensors
from tests.oracle.names import entry, kernel_of, module_of, modules_of, with_saved

_NORMS = {'norm_before': 'adapter_norm_before', 'norm_after': 'adapter_norm_after'}


def _hub(name: str) -> str:
    """A module's name without AdapterHub's prefix and the place of the adapter in it."""
    return name.partition('.adapters.')[0].partition('.loras.')[0]


def _branch(case: Case, name: str) -> str:
    """Our `branch` module of the sublayer whose end AdapterHub adapts."""
    where = _hub(name)
    if case.base_architecture == 'bert':
        dense = module_of(case, f'{where}.dense')
        return dense.removesuffix('output') + 'branch'
    layer = next(part for part in where.split('.') if part.isdigit())
    kind = 'self_attn' if 'attention_adapters' in where else 'mlp'
    return f'layers_{layer}/{kind}_branch'


def bottleneck(case: Case) -> Converted:
    config = case.config['config']
    names = sorted({name.rpartition('.adapter_up.')[0] for name in case.tensors} - {''})
    sites = {name: _branch(case, name) for name in names}
    learned = config['scaling'] == 'learned'

    def convert_one(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
        # With a norm in front, the sequence holds it as number 0 and the matrix as number 1.
        down = f'{name}.adapter_down.{1 if config["ln_before"] else 0}'
        leaves = {
            'down': tensors[f'{down}.weight'].T,
            'down_bias': tensors[f'{down}.bias'],
            'up': tensors[f'{name}.adapter_up.weight'].T,
            'up_bias': tensors[f'{name}.adapter_up.bias'],
        }
        if learned:
            leaves['scale'] = tensors[f'{name}.scaling'][0]
        if config['use_gating']:
            leaves['gate'] = tensors[f'{name}.gate.weight'][0]
            leaves['gate_bias'] = tensors[f'{name}.gate.bias'][0]
        for ours, theirs in _NORMS.items():
            if config[ours.replace('norm', 'ln')]:
                leaves[ours] = tensors[f'{name}.{theirs}.weight']
                leaves[f'{ours}_bias'] = tensors[f'{name}.{theirs}.bias']
        return leaves

    transform = peftjax.bottleneck(
        size=case.tensors[f'{names[0]}.adapter_up.weight'].shape[1],
        targets=tuple(sites.values()),
        activation=config['non_linearity'],
        scale=config['scaling'],
        reads=_reads(config),
        norm_before=config['ln_before'],
        norm_after=config['ln_after'],
        gate=config['use_gating'],
    )
    return with_saved(
        case,
        Converted(
            transform,
            lambda tensors: {site: convert_one(tensors, name) for name, site in sites.items()},
        ),
    )


def _reads(config):
    if config['is_parallel']:
        return 'input'
    return 'after' if config['original_ln_before'] else 'output'


_COUPLING = {
    f'{ours}_{leaf}': (f'invertible_adapters.a.{theirs}.{number}.{tensor}', tensor == 'weight')
    for ours, theirs in (('f', 'F'), ('g', 'G'))
    for leaf, number, tensor in (
        *(('down', 0, 'weight'), ('down_bias', 0, 'bias')),
        *(('up', 2, 'weight'), ('up_bias', 2, 'bias')),
    )
}


def invertible(case: Case) -> Converted:
    inner, prefix = bottleneck(case), next(n for n in case.tensors if 'invertible' in n)
    prefix = prefix.partition('invertible_adapters')[0]
    path = 'embeddings' if case.base_architecture == 'bert' else 'embed_tokens'

    def convert(tensors: Tensors) -> dict[str, np.ndarray]:
        leaves = {ours: (tensors[prefix + name], turn) for ours, (name, turn) in _COUPLING.items()}
        return {ours: value.T if turn else value for ours, (value, turn) in leaves.items()}

    transform = peftjax.invertible_adapter(
        size=convert(case.tensors)['f_down'].shape[1],
        activation=case.config['config']['non_linearity'],
        targets=path,
    )
    return Converted(
        peftjax.chain(transform, inner.transform),
        lambda tensors: ({path: convert(tensors)}, inner.convert(tensors)),
    )


def compacter(case: Case) -> Converted:
    config = case.config['config']
    names = sorted({name.rpartition('.adapter_up.')[0] for name in case.tensors} - {''})
    sites = {name: _branch(case, name) for name in names}
    shared = next(name for name in case.tensors if name.endswith('phm_rule'))

    def convert_one(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
        return {
            f'{ours}_{part}': tensors[f'{name}.{theirs}.{tensor}']
            for ours, theirs in (('down', 'adapter_down.0'), ('up', 'adapter_up'))
            for part, tensor in (('left', 'W_left'), ('right', 'W_right'), ('bias', 'b'))
        }

    transform = peftjax.compacter(
        size=case.tensors[f'{names[0]}.adapter_down.0.b'].shape[0],
        terms=config['phm_dim'],
        rank=config['phm_rank'],
        activation=config['non_linearity'],
        reads=_reads(config),
        targets=tuple(sites.values()),
    )
    return with_saved(
        case,
        Converted(
            transform,
            lambda tensors: {
                'shared': {'rule': tensors[shared]},
                'sites': {site: convert_one(tensors, name) for name, site in sites.items()},
            },
        ),
    )


def ia3(case: Case) -> Converted:
    """peft's `ia3_l`, or AdapterHub's `lora_B` [out, 1] in the mode that multiplies."""
    hub = 'config' in case.config
    ending = '.loras.a.lora_B' if hub else '.ia3_l'
    inputs = () if hub else tuple(case.config['feedforward_modules'])
    kernels = {name: kernel_of(case, name) for name in modules_of(case, ending)}
    fed = {leaf for name, leaf in kernels.items() if name.endswith(inputs or ('no module',))}

    def array(tensors: Tensors, name: str, leaf: str) -> dict[str, np.ndarray]:
        scale = tensors[f'{name}{ending}'].reshape(-1)
        if leaf in fed:
            return {'input': scale}
        biased = leaf.replace('kernel', 'bias') in case.model.sites.weights
        return {'output_and_bias' if biased else 'output': scale}

    return with_saved(
        case,
        Converted(
            peftjax.ia3(
                targets=tuple(leaf for leaf in kernels.values() if leaf not in fed),
                feedforward=tuple(fed),
            ),
            lambda tensors: {
                leaf: entry(case, leaf, array(tensors, name, leaf))
                for name, leaf in kernels.items()
            },
        ),
    )


def gated_lora(case: Case) -> Converted:
    config = case.config['config']
    kernels = {name: kernel_of(case, name) for name in modules_of(case, '.loras.a.lora_B')}

    def convert(tensors: Tensors) -> dict[str, object]:
        def of(name: str, tensor: str) -> np.ndarray:
            return tensors[f'{name}.loras.a.{tensor}']

        return {
            'inner': {
                leaf: entry(case, leaf, {'a': of(name, 'lora_A').T, 'b': of(name, 'lora_B').T})
                for name, leaf in kernels.items()
            },
            'gates': {
                leaf: {'weight': of(name, 'gate.weight')[0], 'bias': of(name, 'gate.bias')[0]}
                for name, leaf in kernels.items()
            },
        }

    # Its gate stands in place of alpha / r.
    lora = peftjax.lora(rank=config['r'], alpha=config['r'], targets=tuple(kernels.values()))
    return with_saved(case, Converted(peftjax.gated(lora), convert))


def reft(case: Case) -> Converted:
    config = case.config['config']
    method = case.folder.name.removesuffix('_pos')
    prefix = '.reft_layer.refts.a.units.'
    layers = sorted({name.partition(prefix)[0] for name in case.tensors if prefix in name})
    sites = {name: f'layers_{name.rpartition(".")[2]}' for name in layers}
    counts = {'f': config['prefix_positions'], 'l': config['suffix_positions']}
    positions = '+'.join(f'{end}{count}' for end, count in counts.items() if count)
    if config['tied_weights']:
        units = {'both': 0}
    else:
        ends = {'first': ('f', 0), 'last': ('l', 1)}
        units = {unit: number for unit, (end, number) in ends.items() if counts[end]}
    orthogonal = config['orthogonality']
    # See _householder for why the orthonormal cases run as those that may have any projection.
    transform = getattr(peftjax, 'noreft' if orthogonal else method)(
        rank=config['r'],
        positions=positions,
        tied=config['tied_weights'],
        targets=tuple(sites.values()),
    )
    kind = 'projection.parametrizations.weight.original' if orthogonal else 'projection.weight'

    def convert(tensors: Tensors) -> dict[str, object]:
        return {
            site: {
                unit: {
                    'weight': tensors[f'{layer}{prefix}{number}.learned_source.weight'].T,
                    'bias': tensors[f'{layer}{prefix}{number}.learned_source.bias'],
                    'projection': tensors[f'{layer}{prefix}{number}.{kind}'].T,
                }
                for unit, number in units.items()
            }
            for layer, site in sites.items()
        }

    if orthogonal:
        bases = {
            (site, unit): case.tensors[
                f'{layer}{prefix}{number}.projection.parametrizations.weight.0.base'
            ]
            for layer, site in sites.items()
            for unit, number in units.items()
        }
        transform = _householder(transform, bases)
    return with_saved(case, Converted(transform, convert))


def _householder(transform: peftjax.PeftTransform, bases) -> peftjax.PeftTransform:
    """`transform` with torch's parametrisation of an orthonormal matrix in front of it.

    The files hold diagonals moved off -1, which that map cuts to whole numbers: -0.98 becomes a
    column of zeros. Their projections are what the map makes of them, orthonormal or not.
    """

    def inner(adapter):
        return {
            site: {
                unit: {
                    **leaves,
                    'projection': _orthonormal(leaves['projection'], bases[site, unit]),
                }
                for unit, leaves in units.items()
            }
            for site, units in adapter.items()
        }

    return transform._replace(rules=lambda adapter: transform.rules(inner(adapter)))


def _orthonormal(stored: jax.Array, base: np.ndarray) -> jax.Array:
    size, rank = stored.shape
    q = jnp.eye(size)
    for column in range(rank):
        direction = jnp.tril(stored, -1)[:, column].at[column].set(1.0)
        q = q - 2.0 * jnp.outer(q @ direction, direction) / (direction @ direction)
    signs = jax.lax.stop_gradient(jnp.trunc(jnp.diagonal(stored)))
    return base @ (q[:, :rank] * signs)


_HUB = {
    **dict.fromkeys(
        (
            'seq_bn',
            'seq_bn_gelu_ln',
            'seq_bn_leave_out',
            'double_seq_bn',
            'par_bn',
            'par_bn_gating',
            'scaled_par_bn',
        ),
        bottleneck,
    ),
    **dict.fromkeys(('compacter', 'compacter++'), compacter),
    **dict.fromkeys(('loreft', 'loreft_pos', 'noreft', 'direft'), reft),
    'seq_bn_inv': invertible,
    'ia3': ia3,
    'lora_gating': gated_lora,
}
CONVERTERS = {'ia3': ia3} | {f'adapterhub {name}': make for name, make in _HUB.items()}
