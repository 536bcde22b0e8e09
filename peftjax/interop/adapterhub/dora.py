"""AdapterHub's DoRA, in and out."""

from typing import Any

import jax
import numpy as np

from peftjax.core import paths
from peftjax.core.combine import chain
from peftjax.core.entries import Entry
from peftjax.core.model import Model
from peftjax.core.quantized import dense
from peftjax.core.transform import About
from peftjax.interop.adapterhub.file import File, Part, Written
from peftjax.interop.adapterhub.lora import factors, write_lora
from peftjax.interop.adapterhub.lora_config import matrices_of
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, literal
from peftjax.methods.low_rank.dora import dora
from peftjax.methods.sparse.select import select


def read_dora(file: File, found: Found) -> Part:
    """Theirs is `m (x (W + s A B) + bias) / |W + A B|`, without `s = alpha / r` in the lengths.

    Ours has `s` in both and does not scale the bias. The outputs are equal with the magnitude `m |W
    + s A B| / |W + A B|`, and with a changed bias, where there is one, as a leaf beside it.
    """
    modules, rank, alpha = factors(file, found)
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


def write_dora(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    """See `read_dora`."""
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
            lengths = [
                _lengths(hub.model, path, entry, s) for s in (1, inner['alpha'] / inner['r'])
            ]
            magnitude = magnitude * lengths[0] / lengths[1]
        scaled[path] = {'m': magnitude}
    for module, arrays in matrices_of(hub, scaled):
        tensors[f'{module}.loras.{name}.m.weight'] = arrays['m'][:, None]
    return tensors, inner | {'use_dora': True}


def _lengths(model: Model, path: str, entry: Entry, scale: float) -> np.ndarray:
    """The lengths of the columns of `W + s A B`, `[*stack, out]`."""
    leaf = paths.flatten(model.params)[path]
    if any(isinstance(each, jax.ShapeDtypeStruct) for each in jax.tree.leaves(leaf)):
        raise CheckpointError(
            f'magnitudes of {path!r} are relative to weights that an abstract model does not have; '
            'load the model with its values'
        )
    assert entry.layout is not None
    matrix = np.asarray(entry.layout.to_matrix(dense(leaf)), np.float32)
    return np.linalg.norm(matrix + scale * (entry['a'] @ entry['b']), axis=-2)
