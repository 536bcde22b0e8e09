"""AdapterHub's LoReFT, NoReFT and DiReFT."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax.core.transform import About, PeftTransform
from peftjax.interop.adapterhub.file import Arrays, File, Part, Written, entries, give
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import literal
from peftjax.methods.reft import positions
from peftjax.methods.reft.reft import direft, loreft, noreft, orthonormal

_LEAVES = [
    ('weight', 'learned_source.weight', 'transposed'),
    ('bias', 'learned_source.bias', 'same'),
]
_PROJECTION = 'projection.parametrizations.weight.'
_PLAIN = [*_LEAVES, ('projection', 'projection.weight', 'transposed')]
_REFLECTED = [
    *_LEAVES,
    ('original', f'{_PROJECTION}original', 'transposed'),
    ('base', f'{_PROJECTION}0.base', 'same'),
]
_ELSEWHERE = (
    'AdapterHub counts the tokens of an encoder also where its ReFT edits those of the decoder, '
    'and would edit others; bottlenecks, Compacter, LoRA and (IA)³ are read and written'
)
_UNSAID = {'noreft': noreft, 'direft': direft}


def read(file: File) -> Part:
    """LoReFT; or NoReFT, which allows any projection, if the file's is not orthonormal.

    torch keeps a projection as a product of reflections on a frozen base, times a diagonal that it
    truncates to whole numbers. Weight decay moves the diagonal away from -1, and its column becomes
    zero.
    """
    config, hub = file.config, file.hub
    if not hub.places.reft:
        raise CheckpointError(f'{file.where}: {_ELSEWHERE}')
    orthogonal = file.switch('orthogonality')
    unsaid = None if orthogonal else _unsaid(file)
    config.must_be('non_linearity', None)
    config.must_be('output_reft', True)
    config.get('layers')
    rank, tied = config.whole('r'), file.switch('tied_weights')
    counts = [config.whole(f'{end}_positions', least=0) for end in ('prefix', 'suffix')]
    ends = '+'.join(f'{end}{count}' for end, count in zip('fl', counts, strict=True) if count)
    if not ends:
        raise CheckpointError(f'{file.where} edits no positions')
    units = ['both'] if tied else ['first', 'last']
    # An end without positions has a unit too.
    kept = positions.parse(ends, tied).units

    def read_layer(start: str) -> Arrays:
        found = {}
        for number, unit in enumerate(units):
            here = f'{start}units.{number}.'
            leaves = file.leaves(here, _LEAVES if orthogonal else _PLAIN)
            if orthogonal:
                original = file.take(f'{here}{_PROJECTION}original', rank, None)
                base = file.take(f'{here}{_PROJECTION}0.base', *2 * original.shape[1:])
                leaves['projection'] = _projection(original.T, base)
            if unit in kept:
                found |= {f'{unit}/{leaf}': value for leaf, value in leaves.items()}
        return found

    flat = file.sites(f'.reft_layer.refts.{file.name}.', hub.block, read_layer)
    if not flat:
        raise CheckpointError(f'{file.where} holds no ReFT called {file.name!r}')
    sites = {path: _nested(leaves) for path, leaves in flat.items()}
    projections = [unit['projection'] for units in sites.values() for unit in units.values()]
    whole = all(
        np.allclose(each.swapaxes(-1, -2) @ each, np.eye(rank), atol=1e-4) for each in projections
    )
    method = unsaid or (loreft if whole else noreft)
    transform = method(rank=rank, positions=ends, tied=tied, targets=literal(sites))
    return transform, entries(method.__name__, sites)


def _unsaid(file: File) -> Callable[..., PeftTransform]:
    """The method of a file without orthogonality, as the caller says."""
    told = file.told.pop('reft', None)
    if told is None:
        raise CheckpointError(
            f"{file.where}: architecture 'reft' of AdapterHub without orthogonality does not say "
            "whether the projection is subtracted (NoReFT) or not (DiReFT): write reft='noreft' or "
            "reft='direft' as it was trained; the library itself reads either as NoReFT"
        )
    if told not in _UNSAID:
        raise CheckpointError(f'reft is {told!r}; write one of {sorted(_UNSAID)}')
    return _UNSAID[told]


def _nested(leaves: Arrays) -> dict[str, Arrays]:
    nested: dict[str, Arrays] = {}
    for name, value in leaves.items():
        unit, _, leaf = name.partition('/')
        nested.setdefault(unit, {})[leaf] = value
    return nested


def _projection(stored: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The projection that torch computes, `[features, r]`."""
    size, rank = stored.shape
    q = np.eye(size, dtype=np.float32)
    for column in range(min(size, rank)):
        direction = np.tril(stored, -1)[:, column]
        direction[column] = 1.0
        q = q - 2.0 * np.outer(q @ direction, direction) / (direction @ direction)
    return base @ (q[:, :rank] * np.trunc(np.diagonal(stored)))


def write(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    arguments, orthogonal = about.arguments, about.name == 'loreft'
    if not hub.places.reft:
        raise ValueError(_ELSEWHERE)
    if arguments['positions'] == 'all':
        raise ValueError(
            "AdapterHub edits the first and last tokens: give positions, such as positions='f1+l1'"
        )
    places = positions.parse(arguments['positions'], arguments['tied'])
    numbers = {'both': 0} if arguments['tied'] else {'first': 0, 'last': 1}
    inside, slots = f'.reft_layer.refts.{name}.units', hub.blocks()
    tensors: Arrays = {}
    for unit, number in numbers.items():
        sites = {path: _unit(units, unit) for path, units in adapter.items()}
        if orthogonal:
            sites = {path: _reflected(leaves) for path, leaves in sites.items()}
        table = _REFLECTED if orthogonal else _PLAIN
        tensors |= give(slots, sites, f'{inside}.{number}.', table)
    layers = {hub.layer_of(n) for slot in slots if slot.path in adapter for n in slot.names}
    everything = {hub.layer_of(n) for slot in slots for n in slot.names}
    return tensors, {
        **{'architecture': 'reft', 'dropout': 0.05, 'dtype': None, 'init_weights_seed': None},
        **{'non_linearity': None, 'orthogonality': orthogonal, 'output_reft': True},
        'layers': 'all' if layers == everything else sorted(layers),
        'prefix_positions': places.first,
        'suffix_positions': places.last,
        'r': arguments['rank'],
        'tied_weights': arguments['tied'],
    }


def _unit(units: Any, unit: str) -> Arrays:
    """A unit of the file; a unit without positions, which the file has too, changes nothing."""
    some = next(iter(units.values()))
    if unit in units:
        return {leaf: np.asarray(value) for leaf, value in units[unit].items()}
    leaves = {leaf: np.zeros_like(value) for leaf, value in some.items()}
    leaves['projection'] = leaves['projection'] + np.eye(*leaves['projection'].shape[-2:])
    return leaves


def _reflected(leaves: Arrays) -> Arrays:
    """The leaves with the projection as torch starts it: a whole base, and minus the identity."""
    q = np.asarray(orthonormal(jnp.asarray(leaves['projection'])))
    base, r = np.linalg.qr(q, mode='complete')
    rank = q.shape[-1]
    signs = np.ones(base.shape[:-2] + base.shape[-1:], np.float32)
    signs[..., :rank] = np.sign(np.diagonal(r, axis1=-2, axis2=-1))
    base = base * signs[..., None, :]
    base[..., :rank] = q
    original = np.broadcast_to(-np.eye(*q.shape[-2:], dtype=q.dtype), q.shape)
    return {'weight': leaves['weight'], 'bias': leaves['bias'], 'base': base, 'original': original}


WRITERS = {'loreft': write, 'noreft': write}
UNWRITTEN = {'direft': ': that library reads such a file as NoReFT'}
