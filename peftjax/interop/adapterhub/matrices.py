"""AdapterHub's methods on matrices: LoRA, (IA)³, gated LoRA, DoRA and VeRA."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from peftjax.core import paths
from peftjax.core.combine import chain
from peftjax.core.entries import Entry
from peftjax.core.model import Model
from peftjax.core.quantized import dense
from peftjax.core.transform import About
from peftjax.interop.adapterhub.file import Arrays, File, Part, Written, left_out
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, bias_named, literal
from peftjax.interop.peft.names import sliced
from peftjax.methods.dora import dora
from peftjax.methods.gated import gated
from peftjax.methods.ia3 import ia3
from peftjax.methods.lora import lora
from peftjax.methods.select import select
from peftjax.methods.vera import drawn_projections, vera

_LORA = {
    **{'architecture': 'lora', 'composition_mode': 'add', 'dropout': 0.0, 'dtype': None},
    **{'init_weights': 'lora', 'init_weights_seed': None, 'use_dora': False},
    **{'use_gating': False, 'vera_b': None, 'vera_d': None},
}


def read(file: File) -> Part:
    config = file.config
    found = Found(file.hub.model, file.hub.names, config, file.tensors, file.where)
    config.must_be('composition_mode', 'add', 'scale')
    gates, decomposed = file.switch('use_gating'), file.switch('use_dora')
    # The library, too, goes by whether one of them is written with a point.
    vectors = any(type(config.get(field)) is float for field in ('vera_b', 'vera_d'))
    if gates + decomposed + vectors > 1 or (
        config['composition_mode'] == 'scale' and (decomposed or vectors)
    ):
        raise CheckpointError(
            f'{file.where} has several of use_gating, use_dora and vera_d; one is built here'
        )
    if config['composition_mode'] == 'scale':
        return _read_ia3(file, found, gates)
    if vectors:
        return _read_vera(file, found)
    rank, alpha, suffix = config.whole('r'), config.number('alpha'), f'.loras.{file.name}.lora_'
    wrong = [
        n
        for n, value in file.tensors.items()
        if suffix in n and (value.ndim != 2 or rank not in value.shape)
    ]
    if wrong:
        raise CheckpointError(f'{file.where}: {wrong[:4]} are no factors of rank {rank}')
    modules = found.take({'a': f'{suffix}A', 'b': f'{suffix}B'})
    if not modules:
        raise CheckpointError(f'{file.where} holds no LoRA called {file.name!r}')
    turned = {module: {n: v.T for n, v in each.items()} for module, each in modules.items()}
    if decomposed:
        return _read_dora(file, found, turned, rank, alpha)
    entries = found.entries('lora', turned)
    if not gates:
        return lora(rank=rank, alpha=alpha, targets=literal(entries)), entries
    # The gate stands in place of alpha / r.
    inner = lora(rank=rank, alpha=rank, targets=literal(entries))
    values = _of_each(file, found, turned, {n: f'.gate.{n}' for n in ('weight', 'bias')})
    return gated(inner), {'inner': entries, 'gates': found.entries('gated', values)}


def _of_each(
    file: File, found: Found, modules: Mapping[str, Any], endings: Mapping[str, str]
) -> dict[str, Arrays]:
    """What a file has once for each of the modules, in a leading axis of one."""
    taken = found.take({ours: f'.loras.{file.name}{each}' for ours, each in endings.items()})
    if set(taken) != set(modules):
        raise CheckpointError(
            f'{file.where} has {sorted(endings.values())} at {len(taken)} of {len(modules)} modules'
        )
    return {
        module: {each: file.first(value, module) for each, value in arrays.items()}
        for module, arrays in taken.items()
    }


def _read_ia3(file: File, found: Found, gates: bool) -> Part:
    rank, alpha = file.config.whole('r'), file.config.number('alpha')
    if (rank, alpha, gates) != (1, 1, False):
        raise CheckpointError(
            f'{file.where}: (IA)³ has r and alpha 1 and no gates, not {rank}, {alpha}, {gates}'
        )
    modules = found.take({'l': f'.loras.{file.name}.lora_B'})
    entries = found.entries(
        'ia3',
        {
            module: bias_named(found, module, {'output': arrays['l'].reshape(-1)}, 'output')
            for module, arrays in modules.items()
        },
    )
    return ia3(targets=literal(entries)), entries


def _read_dora(
    file: File, found: Found, modules: Mapping[str, Arrays], rank: int, alpha: float
) -> Part:
    """Theirs is `m (x (W + s A B) + bias) / |W + A B|`, no `s = alpha / r` in the lengths.

    Ours has `s` in both and leaves the bias alone, so that a magnitude is `m |W + s A B| /
    |W + A B|`, and a bias, where there is one, is a leaf of its own: equal outputs.
    """
    magnitudes = found.take({'m': f'.loras.{file.name}.m.weight'})
    if set(magnitudes) != set(modules):
        raise CheckpointError(
            f'{file.where} has magnitudes at {len(magnitudes)} of {len(modules)} modules'
        )
    entries = found.entries(
        'dora',
        {
            module: {**arrays, 'magnitude': magnitudes[module]['m'].reshape(-1)}
            for module, arrays in modules.items()
        },
    )
    biases = {}
    for path, entry in list(entries.items()):
        magnitude = entry['magnitude']
        before = _lengths(file.hub.model, path, entry, 1.0)
        if before.shape != magnitude.shape:
            raise CheckpointError(
                f'{file.where}: magnitudes of {path!r} are {magnitude.shape}, need {before.shape}'
            )
        leaf = f'{path.removesuffix("/kernel")}/bias'
        if leaf in file.hub.names.slots:
            bias = np.asarray(paths.flatten(file.hub.model.params)[leaf])
            biases[leaf] = (bias.reshape(magnitude.shape) * magnitude / before).reshape(bias.shape)
        if alpha != rank:
            after = _lengths(file.hub.model, path, entry, alpha / rank)
            entries[path] = entry.replace(magnitude=magnitude * after / before)
    transform = dora(rank=rank, alpha=alpha, targets=literal(entries))
    if not biases:
        return transform, entries
    return chain(select(literal(biases)), transform), (Entry('select', biases), entries)


def _lengths(model: Model, path: str, entry: Entry, scale: float) -> np.ndarray:
    """Of the columns of `W + s A B`, `[*stack, out]`."""
    leaf = paths.flatten(model.params)[path]
    if any(isinstance(each, jax.ShapeDtypeStruct) for each in jax.tree.leaves(leaf)):
        raise CheckpointError(
            f'magnitudes of {path!r} are relative to weights that an abstract model does not have; '
            'load the model with its values'
        )
    assert entry.layout is not None
    matrix = np.asarray(entry.layout.to_matrix(dense(leaf)), np.float32)
    return np.linalg.norm(matrix + scale * (entry['a'] @ entry['b']), axis=-2)


def _read_vera(file: File, found: Found) -> Part:
    """VeRA where what trains is still diagonal; LoRA of the same products where it is not.

    The library trains matrices in place of the paper's vectors: `D: [r, r]` and `B: [out, out]`.
    """
    rank, alpha = file.config.whole('r'), file.config.number('alpha')
    shared = f'shared_parameters.{file.name}.lora_'
    a, b = file.take(f'{shared}A', rank, None), file.take(f'{shared}B', None, rank)
    start = f'.loras.{file.name}.vera_'
    modules = found.take({'d': f'{start}D', 'b': f'{start}B'})
    if not modules:
        raise CheckpointError(f'{file.where} holds no VeRA called {file.name!r}')
    for module, arrays in modules.items():
        place = found.place(module)
        layout = found.layout(place.slot.path)
        shapes = [v.shape for v in (a, arrays['d'], b, arrays['b'])]
        needs = [(rank, layout.inputs), (rank, rank)]
        needs += [(layout.outputs, rank), (layout.outputs, layout.outputs)]
        if shapes != needs:
            raise CheckpointError(f'{file.where}: {module} has {shapes}, needs {needs}')
    if all(_diagonal(value) for arrays in modules.values() for value in arrays.values()):
        entries = found.entries(
            'vera',
            {
                module: {'d': np.diag(each['d']) * (alpha / rank), 'b': np.diag(each['b']).copy()}
                for module, each in modules.items()
            },
        )
        return vera(rank=rank, projections=(a.T, b.T), targets=literal(entries)), entries
    entries = found.entries(
        'lora',
        {
            module: {'a': (each['d'] @ a).T, 'b': (each['b'] @ b).T}
            for module, each in modules.items()
        },
    )
    return lora(rank=rank, alpha=alpha, targets=literal(entries)), entries


def _diagonal(matrix: np.ndarray) -> bool:
    return np.array_equal(matrix, np.diag(np.diag(matrix)))


def write_lora(hub: Hub, about: About, adapter: Any, name: str) -> Written:
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


def write_dora(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    """See `_read_dora`."""
    tensors, inner = write_lora(hub, about, adapter, name)
    if biased := [
        path for path in adapter if f'{path.removesuffix("/kernel")}/bias' in hub.names.slots
    ]:
        raise ValueError(
            f'{biased} have biases, which the DoRA of AdapterHub multiplies by its magnitudes; '
            "write form='peft'"
        )
    scaled = {}
    for path, entry in adapter.items():
        magnitude = np.asarray(entry['magnitude'])
        if inner['alpha'] != inner['r']:
            factors = [
                _lengths(hub.model, path, entry, s) for s in (1, inner['alpha'] / inner['r'])
            ]
            magnitude = magnitude * factors[0] / factors[1]
        scaled[path] = {'m': magnitude}
    for module, arrays in _matrices(hub, scaled):
        tensors[f'{module}.loras.{name}.m.weight'] = arrays['m'][:, None]
    return tensors, inner | {'use_dora': True}


def write_vera(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    """See `_read_vera`."""
    arguments, layouts = about.arguments, [entry.layout for entry in adapter.values()]
    rank, sides = arguments['rank'], {(each.inputs, each.outputs) for each in layouts}
    if len(sides) != 1:
        raise ValueError(
            f'the VeRA of AdapterHub shares two matrices of one shape; here are {sorted(sides)}'
        )
    shared = arguments['projections'] or drawn_projections(
        arguments['seed'], rank, layouts[0].inputs, layouts[0].outputs
    )
    ((inputs, outputs),) = sides
    tensors = {
        f'shared_parameters.{name}.lora_A': np.asarray(shared[0])[:inputs].T,
        f'shared_parameters.{name}.lora_B': np.asarray(shared[1])[:, :outputs].T,
    }
    for module, arrays in _matrices(hub, adapter):
        for ours, theirs in (('d', 'D'), ('b', 'B')):
            tensors[f'{module}.loras.{name}.vera_{theirs}'] = np.diag(arrays[ours])
    fields = {'init_weights': 'vera', 'vera_d': float(arguments['d_initial']), 'vera_b': 0.0}
    return tensors, _LORA | _chosen(hub, adapter) | {'r': rank, 'alpha': rank} | fields


def write_ia3(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    del about
    tensors = {}
    for module, arrays in _matrices(hub, adapter):
        if 'input' in arrays:
            raise ValueError(f'{module}: AdapterHub multiplies what leaves a matrix, not its input')
        (scale,) = arrays.values()
        tensors[f'{module}.loras.{name}.lora_B'] = scale[:, None]
    inner = _LORA | {'composition_mode': 'scale', 'init_weights': 'ia3', 'r': 1, 'alpha': 1}
    return tensors, inner | _chosen(hub, adapter)


def write_gated(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    inner = about.arguments['transform'].about
    if (
        inner is None
        or inner.name != 'lora'
        or inner.arguments['alpha'] not in (None, inner.arguments['rank'])
    ):
        raise ValueError(
            'AdapterHub gates LoRA alone, and in place of alpha / rank; leave alpha out'
        )
    tensors, config = write_lora(hub, inner, adapter['inner'], name)
    for module, arrays in _matrices(hub, adapter['gates']):
        for each, value in arrays.items():
            tensors[f'{module}.loras.{name}.gate.{each}'] = value[None]
    return tensors, config | {'use_gating': True}


def _matrices(hub: Hub, entries: Mapping[str, Any]) -> Iterable[tuple[str, Arrays]]:
    for path, arrays in entries.items():
        slot = hub.names.slots[path]
        for index, tensor in enumerate(slot.names):
            yield (
                tensor.removesuffix('.weight'),
                {ours: sliced(slot, value, index) for ours, value in arrays.items()},
            )


def _chosen(hub: Hub, entries: Mapping[str, Any]) -> dict[str, Any]:
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
    attention = [kind for kind in places.attention if kind in kinds]
    return {
        'selfattn_lora': bool(attention),
        'attn_matrices': attention or ['q', 'v'],
        'intermediate_lora': 'intermediate' in kinds,
        'output_lora': 'output' in kinds,
        'leave_out': left_out(hub, layers),
    }


WRITERS = {
    **{'lora': write_lora, 'dora': write_dora, 'vera': write_vera},
    **{'ia3': write_ia3, 'gated': write_gated},
}
