"""AdapterHub's bottlenecks, Compacter and invertible adapters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.core.transform import About
from peftjax.interop.adapterhub.file import (
    Arrays,
    File,
    Part,
    Table,
    Written,
    entries,
    give,
    left_out,
)
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import literal
from peftjax.methods.bottleneck.bottleneck import bottleneck
from peftjax.methods.bottleneck.compacter import compacter
from peftjax.methods.bottleneck.invertible import invertible_adapter

# The usual fields of a bottleneck's config; the others depend on the adapter.
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
# From their names of activations to ours, and from ours to theirs where a file is written.
_ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_orig': 'gelu', 'silu': 'swish'}
_WRITTEN = {'gelu_tanh': 'gelu_new'}


def _table(arguments: Mapping[str, Any]) -> Table:
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


_COMPACTER = [
    (f'{ours}_{part}', f'{theirs}.{tensor}', 'same')
    for ours, theirs in (('down', 'adapter_down.0'), ('up', 'adapter_up'))
    for part, tensor in (('left', 'W_left'), ('right', 'W_right'), ('bias', 'b'))
]
_COUPLING = [
    (f'{ours}_{leaf}', f'{theirs}.{number}.{tensor}', how)
    for ours, theirs in (('f', 'F'), ('g', 'G'))
    for leaf, number, tensor, how in (
        *(('down', 0, 'weight', 'transposed'), ('down_bias', 0, 'bias', 'same')),
        *(('up', 2, 'weight', 'transposed'), ('up_bias', 2, 'bias', 'same')),
    )
]


def read(file: File) -> list[Part]:
    """A bottleneck or a Compacter, after an invertible adapter if the file has one."""
    config = file.config
    for field in ('adapter_residual_before_ln', 'shared_W_phm'):
        config.must_be(field, False)
    config.must_be('cross_adapter', False, *([True] if _has(file.hub, 'cross_adapter') else []))
    config.must_be('factorized_phm_rule', False)
    for field in ('residual_before_ln', 'original_ln_after'):
        config.must_be(field, True)
    activation = config.plain('non_linearity', lambda word: _ACTIVATIONS.get(word, word))
    learned = config.get('scaling', 1.0) == 'learned'
    reads = 'after' if file.switch('original_ln_before') else 'output'
    arguments = {'activation': activation, 'reads': reads}
    if file.switch('is_parallel'):
        arguments['reads'] = 'input'
    settings = {
        'scale': 'learned' if learned else config.number('scaling', 1.0),
        'norm_before': file.switch('ln_before'),
        'norm_after': file.switch('ln_after'),
        'gate': file.switch('use_gating'),
    }
    phm = file.switch('phm_layer')
    for field in ('factorized_phm_W', 'shared_phm_rule', 'phm_bias'):
        config.must_be(field, True)
    inside = f'.adapters.{file.name}.'
    if settings['norm_before'] and not phm:
        _drop_second_norm(file, inside)
    table = _COMPACTER if phm else _table(settings)
    try:
        inverted = _read_invertible(file, activation)
        sites = file.sites(inside, file.hub.branch, lambda start: file.leaves(start, table))
        if not sites:
            raise CheckpointError(f'{file.where} holds no bottleneck called {file.name!r}')
        size = {_width(leaves['down_bias']) for leaves in sites.values()}
        if len(size) != 1:
            raise CheckpointError(
                f'{file.where} has bottlenecks of sizes {sorted(size)}; one is built here'
            )
        targets = literal(sites)
        if not phm:
            made = bottleneck(size=size.pop(), targets=targets, **arguments, **settings)
            return [*inverted, (made, entries('bottleneck', sites))]
        if settings != {'scale': 1.0, 'norm_before': False, 'norm_after': False, 'gate': False}:
            raise CheckpointError(f'{file.where}: Compacter with {settings} is not built here')
        rule = file.take(f'shared_parameters.{file.name}.phm_rule')
        terms, rank = config.whole('phm_dim'), config.whole('phm_rank')
        made = compacter(size=size.pop(), targets=targets, terms=terms, rank=rank, **arguments)
        adapter = {'shared': {'rule': rule}, 'sites': entries('compacter', sites)}
        return [*inverted, (made, adapter)]
    except (ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f'{file.where}: {error}') from error


def _drop_second_norm(file: File, inside: str) -> None:
    """Drops the second name under which the file holds the norm."""
    for first in [n for n in file.tensors if f'{inside}adapter_down.0.' in n]:
        other = first.replace('adapter_down.0', 'adapter_norm_before')
        if not np.array_equal(file.take(first), file.tensors.get(other, np.nan)):
            raise CheckpointError(f'{file.where}: {first} and {other} are one norm and differ')


def _read_invertible(file: File, activation: str) -> list[Part]:
    # In transformers' own classes the library leaves the output embedding alone.
    file.config.must_be('inv_adapter', None, 'nice')
    if not file.config.get('inv_adapter'):
        return []
    places = file.hub.places
    if places.embeddings is None:
        raise CheckpointError(
            f'{file.where}: an invertible adapter before the encoder only, but here encoder and '
            'decoder share the embedding'
        )
    leaves = file.leaves(f'invertible_adapters.{file.name}.', _COUPLING)
    made = invertible_adapter(
        size=_width(leaves['f_down_bias']),
        targets=literal([places.embeddings]),
        inverse=places.last if file.flexible else None,
        activation=activation,
    )
    return [(made, entries('invertible_adapter', {places.embeddings: leaves}))]


def _has(hub: Hub, switch: str) -> bool:
    return any(switch == each for _, each in hub.places.branches.values())


def _width(bias: np.ndarray) -> int:
    """The size of a bottleneck; a file may hold anything in place of its bias."""
    return bias.shape[-1] if bias.ndim else 1


_FIXED = {
    'houlsby': {'scale': 1.0, 'reads': 'output'},
    'pfeiffer': {'scale': 1.0, 'reads': 'after'},
    'parallel_adapter': {'reads': 'input'},
    'compacter': {'scale': 1.0},
}


def write_bottleneck(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    plain = {'norm_before': False, 'norm_after': False, 'gate': False}
    arguments = plain | dict(about.arguments) | _FIXED.get(about.name, {})
    tensors = give(hub.branches(), adapter, f'.adapters.{name}.', _table(arguments))
    if arguments['norm_before']:
        for theirs in [n for n in tensors if '.adapter_norm_before.' in n]:
            tensors[theirs.replace('adapter_norm_before', 'adapter_down.0')] = tensors[theirs]
    inner = _inner(hub, arguments, adapter)
    inner |= {'ln_before': arguments['norm_before'], 'ln_after': arguments['norm_after']}
    return tensors, inner | {'use_gating': arguments['gate'], 'scaling': arguments['scale']}


def write_compacter(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    arguments = {**about.arguments, **_FIXED['compacter']}
    if arguments['rank'] is None or not arguments['shared_rule']:
        raise ValueError('a PHM adapter is not written: give compacter a rank and a shared rule')
    tensors = give(hub.branches(), adapter['sites'], f'.adapters.{name}.', _COMPACTER)
    tensors[f'shared_parameters.{name}.phm_rule'] = np.asarray(adapter['shared']['rule'])
    inner = _inner(hub, arguments, adapter['sites'])
    fields = {'phm_layer': True, 'phm_dim': arguments['terms'], 'phm_rank': arguments['rank']}
    return tensors, inner | fields


def add_invertible(hub: Hub, about: About, adapter: Any, name: str, written: Written) -> Written:
    """A bottleneck's tensors and config, with the invertible adapter in front of it.

    Raises:
        ValueError: it or its inverse is at another place, or it has another activation.
    """
    (tensors, inner), arguments, places = written, about.arguments, hub.places
    if places.embeddings is None:
        raise ValueError('AdapterHub has an invertible adapter before the encoder only')
    stands = [*adapter], _word(arguments['activation'])
    needs = [places.embeddings], inner['non_linearity']
    if stands != needs or arguments['inverse'] not in (None, places.last):
        raise ValueError(
            'AdapterHub has an invertible adapter in front of a bottleneck of the same activation: '
            f'[targets] and activation {needs}, inverse None or {places.last!r}, not {stands} and '
            f'{arguments["inverse"]!r}'
        )
    leaves = {leaf: np.asarray(value) for leaf, value in adapter[places.embeddings].items()}
    more: Arrays = {}
    for ours, theirs, how in _COUPLING:
        value = leaves[ours].T if how == 'transposed' else leaves[ours]
        more[f'invertible_adapters.{name}.{theirs}'] = value
    factor = leaves['f_down'].shape[0] / arguments['size']
    fields = {'inv_adapter': 'nice', 'inv_adapter_reduction_factor': factor}
    return tensors | more, inner | fields


def _inner(hub: Hub, arguments: Mapping[str, Any], sites: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in the config of every bottleneck."""
    activation, reads = _word(arguments['activation']), arguments['reads']
    here = {name for slot in hub.branches() if slot.path in sites for name in slot.names}
    switches = {switch for _, switch in hub.places.branches.values()}
    chosen = {hub.switch_of(n) for n in here}
    layers = {hub.layer_of(n) for n in here}
    # A layer that is left out has no adapter, and any other has all that are switched on.
    meant = {
        name
        for slot in hub.branches()
        for name in slot.names
        if hub.switch_of(name) in chosen and hub.layer_of(name) in layers
    }
    if meant != here:
        raise ValueError(
            f'{sorted(sites)} are not the same places in each layer that has any; '
            f'{sorted(meant - here)} would be adapted too'
        )
    sizes = {np.shape(leaves['down_bias'])[-1] for leaves in sites.values()}
    width = getattr(hub.model.config, hub.places.width)
    return _BOTTLENECK | {
        'non_linearity': activation,
        'is_parallel': reads == 'input',
        'original_ln_before': reads == 'after',
        **{switch: switch in chosen for switch in switches},
        'leave_out': left_out(hub, layers),
        'reduction_factor': width / sizes.pop(),
    }


def _word(activation: Any) -> str:
    if not isinstance(activation, str):
        raise ValueError(f'{activation} has no name that a file could hold; give the word')
    return _WRITTEN.get(activation, activation)


WRITERS = {
    **dict.fromkeys(('bottleneck', 'houlsby', 'pfeiffer', 'parallel_adapter'), write_bottleneck),
    'compacter': write_compacter,
}
