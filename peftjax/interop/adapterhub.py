"""AdapterHub's files (the `adapters` library): bottlenecks, Compacter, LoRA and (IA)³, in and out.

A file holds one adapter under a name of its own. Each table below pairs our leaves with tensors of
theirs and serves both directions.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from peftjax.core.base import About, Adapter, Model
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft_config import PeftConfig
from peftjax.interop.peft_names import Names, sliced, stacked
from peftjax.interop.peft_read import Found, Part, bias_named, literal
from peftjax.methods.bottleneck import bottleneck
from peftjax.methods.compacter import compacter
from peftjax.methods.ia3 import ia3
from peftjax.methods.lora import lora
from peftjax.models.names import Slot
from peftjax.models.registry import family_of_config

WEIGHTS = 'adapter.safetensors'
Written = tuple[dict[str, np.ndarray], dict[str, Any]]


class _Places(NamedTuple):
    """Where a family's adapters stand, `{layer}` in place of the number.

    branches: their location -> our module. intermediate, output: the matrices of the feed-forward
    layer that `intermediate_lora` and `output_lora` mean. attention: where q, k and v stand.
    classes: what `model_class` is with a head and without.
    """

    branches: Mapping[str, str]
    attention: Mapping[str, str]
    intermediate: str
    output: str
    classes: tuple[str, str]


def _encoder(name: str) -> _Places:
    layer = 'encoder.layer.{layer}'
    return _Places(
        {
            f'{layer}.attention.output': 'layers/attention/branch',
            f'{layer}.output': 'layers/ffn/branch',
        },
        {each[0]: f'{layer}.attention.self.{each}' for each in ('query', 'key', 'value')},
        f'{layer}.intermediate.dense',
        f'{layer}.output.dense',
        (f'{name}ForSequenceClassification', f'{name}Model'),
    )


def _decoder(name: str) -> _Places:
    layer = 'layers.{layer}'
    return _Places(
        {
            f'{layer}.attention_adapters': 'layers/self_attn_branch',
            f'{layer}.output_adapters': 'layers/mlp_branch',
        },
        {each: f'{layer}.self_attn.{each}_proj' for each in 'qkv'},
        # The library calls the last matrix the intermediate one, and the other way round.
        f'{layer}.mlp.down_proj',
        f'{layer}.mlp.up_proj',
        (f'{name}ForCausalLM', f'{name}ForCausalLM'),
    )


_FAMILIES = {
    'BertConfig': ('bert', _encoder('Bert')),
    'RobertaConfig': ('roberta', _encoder('Roberta')),
    'LlamaConfig': ('llama', _decoder('Llama')),
}

# What a bottleneck's config says when nothing else is set; the rest is by the adapter.
_BOTTLENECK = {
    **{'adapter_residual_before_ln': False, 'cross_adapter': False, 'dropout': 0.0},
    **{'factorized_phm_W': True, 'factorized_phm_rule': False, 'init_weights': 'bert'},
    **{'hypercomplex_nonlinearity': 'glorot-uniform', 'init_weights_seed': None},
    **{'inv_adapter': None, 'inv_adapter_reduction_factor': None, 'learn_phm': True},
    **{'original_ln_after': True, 'phm_bias': True, 'phm_c_init': 'normal', 'phm_dim': 4},
    **{'phm_init_range': 1e-4, 'phm_layer': False, 'phm_rank': 1, 'residual_before_ln': True},
    **{'shared_W_phm': False, 'shared_phm_rule': True, 'stochastic_depth': 0.0},
    **{'ln_after': False, 'ln_before': False, 'use_gating': False, 'scaling': 1.0},
}
_LORA = {
    **{'architecture': 'lora', 'composition_mode': 'add', 'dropout': 0.0, 'dtype': None},
    **{'init_weights': 'lora', 'init_weights_seed': None, 'use_dora': False},
    **{'use_gating': False, 'vera_b': None, 'vera_d': None},
}
# How it was trained, or what the tensors say as well.
_SAID_ELSEWHERE = (
    *('dropout', 'init_weights', 'init_weights_seed', 'stochastic_depth', 'leave_out'),
    *('mh_adapter', 'output_adapter', 'reduction_factor', 'hypercomplex_nonlinearity'),
    *(
        'inv_adapter_reduction_factor',
        'phm_dim',
        'phm_rank',
        'phm_c_init',
        'phm_init_range',
        'learn_phm',
    ),
    *('attn_matrices', 'selfattn_lora', 'intermediate_lora', 'output_lora', 'dtype'),
)
# Ours and theirs, where they differ.
_ACTIVATIONS = {'gelu_tanh': 'gelu_new'}
_REVERSED = {'gelu_new': 'gelu_tanh', 'gelu_orig': 'gelu', 'silu': 'swish'}

# Our leaf, their tensor below the adapter's name, and how ours comes of theirs.
_Table = list[tuple[str, str, str]]


def _bottleneck_table(arguments: Mapping[str, Any]) -> _Table:
    # With a norm in front, their sequence holds it as number 0 and the matrix as number 1.
    first = 1 if arguments['norm_before'] else 0
    table = [
        ('down', f'adapter_down.{first}.weight', 'transposed'),
        ('down_bias', f'adapter_down.{first}.bias', 'same'),
        ('up', 'adapter_up.weight', 'transposed'),
        ('up_bias', 'adapter_up.bias', 'same'),
    ]
    if arguments['scale'] == 'learned':
        table.append(('scale', 'scaling', 'first'))
    if arguments['gate']:
        table += [('gate', 'gate.weight', 'first'), ('gate_bias', 'gate.bias', 'first')]
    for norm, theirs in (
        ('norm_before', 'adapter_norm_before'),
        ('norm_after', 'adapter_norm_after'),
    ):
        if arguments[norm]:
            table += [
                (norm, f'{theirs}.weight', 'same'),
                (f'{norm}_bias', f'{theirs}.bias', 'same'),
            ]
    return table


_COMPACTER_TABLE = [
    (f'{ours}_{part}', f'{theirs}.{tensor}', 'same')
    for ours, theirs in (('down', 'adapter_down.0'), ('up', 'adapter_up'))
    for part, tensor in (('left', 'W_left'), ('right', 'W_right'), ('bias', 'b'))
]


class _Hub:
    """A model's names as AdapterHub has them, and the branches that its adapters stand at."""

    def __init__(self, model: Model):
        kind = type(model.config).__name__
        if kind not in _FAMILIES:
            raise ValueError(
                f'AdapterHub files are read and written for {", ".join(_FAMILIES)}, not {kind}'
            )
        self.names = Names(model)
        self.prefix = family_of_config(model.config).prefix
        self.family, self.places = _FAMILIES[kind]
        self.classes = self.places.classes
        self.model = model

    def branch(self, location: str) -> tuple[Slot, int] | None:
        """The branch at `encoder.layer.1.output`, its layers as those of a leaf, and which."""
        for pattern, ours in self.places.branches.items():
            match = re.fullmatch(re.escape(pattern).replace(r'\{layer\}', r'(\d{1,5})'), location)
            if match is None:
                continue
            for slot in self.slots():
                if slot.path in (ours, ours.replace('layers/', f'layers_{match[1]}/', 1)):
                    index = int(match[1]) if slot.stacked else 0
                    return (slot, index) if index < len(slot.names) else None
        return None

    def slots(self) -> list[Slot]:
        """The branches of the model, by the names of their layers."""
        found = []
        for pattern, ours in self.places.branches.items():
            for path, site in self.model.sites.modules.items():
                looped = re.fullmatch(ours.replace('layers/', r'layers_(\d+)/', 1), path)
                if path != ours and looped is None:
                    continue
                layers = [int(looped[1])] if looped else range(site.stack[0])
                names = tuple(pattern.format(layer=layer) for layer in layers)
                found.append(Slot(path, names, looped is None, False, ()))
        return found


def read(model: Model, raw: Mapping[str, Any], tensors: dict[str, np.ndarray], where: str) -> Part:
    """The method and the adapter of a file; what is read is taken out of `tensors`.

    Raises:
        CheckpointError: a method, or a setting of it, that is not built here; tensors that are
            missing, misshapen or for another model.
    """
    hub, inner, name = _Hub(model), raw.get('config'), raw.get('name')
    if not isinstance(inner, Mapping) or not isinstance(name, str):
        raise CheckpointError(f'{where}: adapter_config.json names no adapter, or has no config')
    for full in list(tensors):
        tensors[full.removeprefix(hub.prefix)] = tensors.pop(full)
    config = PeftConfig(inner, where)
    kind = config.get('architecture')
    if kind == 'lora':
        part = _read_lora(Found(model, hub.names, config, tensors, where), name)
    elif kind in (None, 'bottleneck'):
        part = _read_bottleneck(hub, config, tensors, where, name)
    else:
        raise CheckpointError(
            f'{where}: architecture {str(kind)[:40]!r} of AdapterHub is not read; bottlenecks, '
            'Compacter, LoRA and (IA)³ are'
        )
    for field in _SAID_ELSEWHERE:
        config.get(field)
    config.check_all_read()
    return part


def _read_lora(found: Found, name: str) -> Part:
    config = found.config
    for field in ('use_dora', 'use_gating'):
        config.must_be(field, False)
    for field in ('vera_b', 'vera_d'):
        config.must_be(field, None)
    config.must_be('composition_mode', 'add', 'scale')
    rank, alpha = config.whole('r'), config.number('alpha')
    tensors, suffix = found.tensors, f'.loras.{name}.lora_'
    if config['composition_mode'] == 'scale':
        if (rank, alpha) != (1, 1):
            raise CheckpointError(f'{found.where}: (IA)³ has r and alpha 1, not {rank} and {alpha}')
        modules = found.take({'l': f'{suffix}B'})
        entries = found.entries(
            {
                module: bias_named(found, module, {'output': arrays['l'].reshape(-1)}, 'output')
                for module, arrays in modules.items()
            }
        )
        return ia3(targets=literal(entries)), entries
    wrong = [
        n
        for n, value in tensors.items()
        if suffix in n and (value.ndim != 2 or rank not in value.shape)
    ]
    if wrong:
        raise CheckpointError(f'{found.where}: {wrong[:4]} are no factors of rank {rank}')
    modules = found.take({'a': f'{suffix}A', 'b': f'{suffix}B'})
    if not modules:
        raise CheckpointError(f'{found.where} holds no LoRA called {name!r}')
    entries = found.entries({m: {n: v.T for n, v in each.items()} for m, each in modules.items()})
    return lora(rank=rank, alpha=alpha, targets=literal(entries)), entries


def _read_bottleneck(
    hub: _Hub, config: PeftConfig, tensors: dict[str, np.ndarray], where: str, name: str
) -> Part:
    for field in (
        'adapter_residual_before_ln',
        'cross_adapter',
        'shared_W_phm',
        'factorized_phm_rule',
    ):
        config.must_be(field, False)
    for field in ('residual_before_ln', 'original_ln_after'):
        config.must_be(field, True)
    config.must_be('inv_adapter', None)
    learned = config.get('scaling', 1.0) == 'learned'
    arguments = {
        'activation': config.plain('non_linearity', lambda word: _REVERSED.get(word, word)),
        'reads': 'after' if config.get('original_ln_before') else 'output',
    }
    if config.get('is_parallel'):
        arguments['reads'] = 'input'
    settings = {
        'scale': 'learned' if learned else config.number('scaling', 1.0),
        'norm_before': bool(config.get('ln_before')),
        'norm_after': bool(config.get('ln_after')),
        'gate': bool(config.get('use_gating')),
    }
    phm = bool(config.get('phm_layer'))
    for field in ('factorized_phm_W', 'shared_phm_rule', 'phm_bias'):
        config.must_be(field, True)
    table = _COMPACTER_TABLE if phm else _bottleneck_table(settings)
    if settings['norm_before'] and not phm:
        _drop_second_norm(tensors, name, where)
    sites = _take(hub, tensors, where, name, table)
    size = {leaves['down_bias'].shape[-1] for leaves in sites.values()}
    if len(size) != 1:
        raise CheckpointError(f'{where} has bottlenecks of sizes {sorted(size)}; one is built here')
    targets = literal(sites)
    try:
        if not phm:
            made = bottleneck(size=size.pop(), targets=targets, **arguments, **settings)
            return made, sites
        if settings != {'scale': 1.0, 'norm_before': False, 'norm_after': False, 'gate': False}:
            raise CheckpointError(f'{where}: Compacter with {settings} is not built here')
        rule = tensors.pop(f'shared_parameters.{name}.phm_rule', None)
        if rule is None:
            raise CheckpointError(f'{where} lacks shared_parameters.{name}.phm_rule')
        terms, rank = config.whole('phm_dim'), config.whole('phm_rank')
        made = compacter(size=size.pop(), targets=targets, terms=terms, rank=rank, **arguments)
        return made, {'shared': {'rule': rule}, 'sites': sites}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f'{where}: {error}') from error


def _drop_second_norm(tensors: dict[str, np.ndarray], name: str, where: str) -> None:
    """Takes out the norm's second name, under which the file holds it too."""
    for first in [n for n in tensors if f'.adapters.{name}.adapter_down.0.' in n]:
        other = first.replace('adapter_down.0', 'adapter_norm_before')
        if other not in tensors or not np.array_equal(tensors[first], tensors[other]):
            raise CheckpointError(f'{where}: {first} and {other} are one norm and differ')
        del tensors[first]


def _take(
    hub: _Hub, tensors: dict[str, np.ndarray], where: str, name: str, table: _Table
) -> dict[str, dict[str, np.ndarray]]:
    """`{our module: {our leaf: array}}` of all adapters of that name."""
    inside = f'.adapters.{name}.'
    layers: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    slots: dict[str, Slot] = {}
    for location in sorted({n.partition(inside)[0] for n in tensors if inside in n}):
        found = hub.branch(location)
        if found is None:
            raise CheckpointError(
                f'{where}: {location} is no place of an adapter in this model; its places are '
                f'{", ".join(hub.places.branches)}'
            )
        slot, index = found
        slots[slot.path] = slot
        leaves = layers.setdefault(slot.path, {})[index] = {}
        for ours, theirs, how in table:
            value = tensors.pop(f'{location}{inside}{theirs}', None)
            if value is None:
                raise CheckpointError(f'{where} lacks {location}{inside}{theirs}')
            if how == 'first':
                if value.ndim < 1 or len(value) != 1:
                    raise CheckpointError(f'{where}: {location}{inside}{theirs} is {value.shape}')
                value = value[0]
            leaves[ours] = value.T if how == 'transposed' else value
    if not layers:
        raise CheckpointError(f'{where} holds no bottleneck called {name!r}')
    return {path: stacked(slots[path], each, where) for path, each in layers.items()}


def write(model: Model, about: About | None, adapter: Adapter, name: str) -> Written:
    """Tensors and adapter_config.json of a method.

    Raises:
        ValueError: a method, or a setting of it, that a file of AdapterHub cannot hold.
    """
    hub = _Hub(model)
    writers = {
        **dict.fromkeys(
            ('bottleneck', 'houlsby', 'pfeiffer', 'parallel_adapter'), _write_bottleneck
        ),
        **{'compacter': _write_compacter, 'lora': _write_lora, 'ia3': _write_ia3},
    }
    if about is None or about.name not in writers:
        raise ValueError(
            f'{about.name if about else "a method of your own"} has no file of AdapterHub here; '
            f'{", ".join(writers)} have'
        )
    tensors, inner = writers[about.name](hub, about, adapter, name)
    hidden = model.config.hidden_size  # pyright: ignore[reportOptionalMemberAccess]
    config = {
        'config': inner,
        'hidden_size': hidden,
        'model_class': hub.classes[hub.names.task == 'FEATURE_EXTRACTION'],
        'model_name': '',
        'model_type': hub.family,
        'name': name,
        'version': 'adapters.1.3.0',
    }
    return {f'{hub.prefix}{n}': np.ascontiguousarray(v) for n, v in tensors.items()}, config


_FIXED = {
    'houlsby': {'scale': 1.0, 'reads': 'output'},
    'pfeiffer': {'scale': 1.0, 'reads': 'after'},
    'parallel_adapter': {'reads': 'input'},
    'compacter': {'scale': 1.0},
}


def _write_bottleneck(hub: _Hub, about: About, adapter: Any, name: str) -> Written:
    plain = {'norm_before': False, 'norm_after': False, 'gate': False}
    arguments = plain | dict(about.arguments) | _FIXED.get(about.name, {})
    tensors = _give(hub, adapter, name, _bottleneck_table(arguments))
    if arguments['norm_before']:
        for theirs in [n for n in tensors if '.adapter_norm_before.' in n]:
            tensors[theirs.replace('adapter_norm_before', 'adapter_down.0')] = tensors[theirs]
    inner = _inner(hub, arguments, adapter)
    inner |= {'ln_before': arguments['norm_before'], 'ln_after': arguments['norm_after']}
    return tensors, inner | {'use_gating': arguments['gate'], 'scaling': arguments['scale']}


def _write_compacter(hub: _Hub, about: About, adapter: Any, name: str) -> Written:
    arguments = {**about.arguments, **_FIXED['compacter']}
    if arguments['rank'] is None or not arguments['shared_rule']:
        raise ValueError('a PHM adapter is not written: give compacter a rank and a shared rule')
    tensors = _give(hub, adapter['sites'], name, _COMPACTER_TABLE)
    tensors[f'shared_parameters.{name}.phm_rule'] = np.asarray(adapter['shared']['rule'])
    inner = _inner(hub, arguments, adapter['sites'])
    fields = {'phm_layer': True, 'phm_dim': arguments['terms'], 'phm_rank': arguments['rank']}
    return tensors, inner | fields


def _inner(hub: _Hub, arguments: Mapping[str, Any], sites: Mapping[str, Any]) -> dict[str, Any]:
    """What the config of every bottleneck says."""
    activation, reads = arguments['activation'], arguments['reads']
    if not isinstance(activation, str):
        raise ValueError(f'{activation} has no name that a file could hold; give the word')
    slots = [slot for slot in hub.slots() if slot.path in sites]
    here = {name for slot in slots for name in slot.names}
    places = list(hub.places.branches)
    kinds = [[each for each in places if each.format(layer=_layer(n)) == n][0] for n in here]
    layers = {_layer(n) for n in here}
    if len(here) != len(set(kinds)) * len(layers):
        raise ValueError(f'{sorted(sites)} are not the same places in each layer that has any')
    everything = range(hub.model.config.num_hidden_layers)  # pyright: ignore[reportOptionalMemberAccess]
    sizes = {np.shape(leaves['down_bias'])[-1] for leaves in sites.values()}
    width = hub.model.config.hidden_size  # pyright: ignore[reportOptionalMemberAccess]
    return _BOTTLENECK | {
        'non_linearity': _ACTIVATIONS.get(activation, activation),
        'is_parallel': reads == 'input',
        'original_ln_before': reads == 'after',
        'mh_adapter': places[0] in kinds,
        'output_adapter': places[1] in kinds,
        'leave_out': [layer for layer in everything if layer not in layers],
        'reduction_factor': width / sizes.pop(),
    }


def _layer(location: str) -> int:
    (number,) = [part for part in location.split('.') if part.isdigit()]
    return int(number)


def _give(hub: _Hub, sites: Mapping[str, Any], name: str, table: _Table) -> dict[str, np.ndarray]:
    slots = {slot.path: slot for slot in hub.slots()}
    if strange := sorted(set(sites) - set(slots)):
        raise ValueError(
            f'{strange} are no places of an adapter in AdapterHub; those of this model are '
            f'{sorted(slots)}'
        )
    tensors = {}
    for path, leaves in sites.items():
        for ours, theirs, how in table:
            for index, location in enumerate(slots[path].names):
                value = sliced(slots[path], leaves[ours], index)
                value = {'transposed': value.T, 'first': value[None], 'same': value}[how]
                tensors[f'{location}.adapters.{name}.{theirs}'] = value
    return tensors


def _write_lora(hub: _Hub, about: About, adapter: Any, name: str) -> Written:
    arguments = about.arguments
    for field in ('rslora', 'rank_pattern', 'alpha_pattern'):
        if arguments[field]:
            raise ValueError(f'AdapterHub has one rank and alpha / rank for all: no {field}')
    rank = arguments['rank']
    alpha = rank if arguments['alpha'] is None else arguments['alpha']
    tensors = {}
    for module, arrays in _matrices(hub, adapter):
        tensors[f'{module}.loras.{name}.lora_A'] = arrays['a'].T
        tensors[f'{module}.loras.{name}.lora_B'] = arrays['b'].T
    return tensors, _LORA | _chosen(hub, adapter) | {'r': rank, 'alpha': alpha}


def _write_ia3(hub: _Hub, about: About, adapter: Any, name: str) -> Written:
    del about
    tensors = {}
    for module, arrays in _matrices(hub, adapter):
        if 'input' in arrays:
            raise ValueError(f'{module}: AdapterHub multiplies what leaves a matrix, not its input')
        (scale,) = arrays.values()
        tensors[f'{module}.loras.{name}.lora_B'] = scale[:, None]
    inner = _LORA | {'composition_mode': 'scale', 'init_weights': 'ia3', 'r': 1, 'alpha': 1}
    return tensors, inner | _chosen(hub, adapter)


def _matrices(hub: _Hub, entries: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, np.ndarray]]]:
    for path, arrays in entries.items():
        slot = hub.names.slots[path]
        for index, tensor in enumerate(slot.names):
            yield (
                tensor.removesuffix('.weight'),
                {ours: sliced(slot, value, index) for ours, value in arrays.items()},
            )


def _chosen(hub: _Hub, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say which matrices are adapted."""
    places = hub.places
    known = {**places.attention, 'intermediate': places.intermediate, 'output': places.output}
    kinds: dict[str, set[int]] = {}
    for module, _ in _matrices(hub, entries):
        parts = [part for part in module.split('.') if part.isdigit()]
        layer = int(parts[0]) if parts else 0
        (kind,) = [k for k, each in known.items() if each.format(layer=layer) == module] or ('',)
        if not kind:
            raise ValueError(
                f'{module} is none of the matrices that AdapterHub adapts: '
                f'{", ".join(known.values())}'
            )
        kinds.setdefault(kind, set()).add(layer)
    layers = set.union(*kinds.values())
    if any(each != layers for each in kinds.values()):
        raise ValueError(f'layers have different matrices adapted: {kinds}')
    everything = range(hub.model.config.num_hidden_layers)  # pyright: ignore[reportOptionalMemberAccess]
    attention = [kind for kind in places.attention if kind in kinds]
    return {
        'selfattn_lora': bool(attention),
        'attn_matrices': attention or ['q', 'v'],
        'intermediate_lora': 'intermediate' in kinds,
        'output_lora': 'output' in kinds,
        'leave_out': [layer for layer in everything if layer not in layers],
    }
