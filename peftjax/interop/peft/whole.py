"""What a file of peft trains whole: heads, embeddings, biases, norms, single tokens' rows."""

import re

import jax
import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Entry
from peftjax.core.model import Model
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Arrays, Found, Part, literal
from peftjax.interop.peft.names import ROOT, stacked
from peftjax.methods.select import select
from peftjax.methods.trainable_tokens import trainable_tokens


def read_whole(found: Found) -> list[Part]:
    """The leaves that the file holds whole: heads, embeddings, biases, norms."""
    grouped: dict[str, dict[int, Arrays]] = {}
    for name in list(found.tensors):
        if '.original_module.' in name:
            found.tensors.pop(name)  # What the trained copy of a module stands in for.
            continue
        place = found.names.place(name.replace('.modules_to_save.', '.'))
        if place is None or (name.endswith('.weight') and 'lora' in name):
            continue
        if place.slot.path.endswith('embedding'):
            refuse_tied(found, name)
        value = found.tensors.pop(name)
        turned = value.T if place.slot.transposed else value
        grouped.setdefault(place.slot.path, {})[place.number] = {'w': turned}
    if not grouped:
        return []
    adapter = {
        path: stacked(found.names.slots[path], layers, found.where)['w']
        for path, layers in grouped.items()
    }
    part = select(literal(adapter)), Entry('select', adapter)
    check_shapes(found.model, found.where, part)
    return [part]


def read_norms(found: Found) -> Part:
    found.tensors.update(
        {
            name.replace('.ln_tuning_layers.', '.'): found.tensors.pop(name)
            for name in list(found.tensors)
            if '.ln_tuning_layers.' in name
        }
    )
    found.config.get('target_modules')
    parts = read_whole(found)
    if not parts:
        raise CheckpointError(f'{found.where} holds no layer norm')
    return parts[0]


ROWS = '.trainable_tokens_delta'


def read_tokens(found: Found) -> Part:
    """Rows of one embedding; the file calls them a change, but they are new rows."""
    config = found.config
    indices = config.get('trainable_token_indices') or config.get('token_indices')
    if isinstance(indices, dict) and len(indices) == 1:
        (indices,) = indices.values()
    if not isinstance(indices, list) or not all(type(each) is int for each in indices):
        raise CheckpointError(f'{config.where}: {indices!r} are not the tokens of one embedding')
    config.get('target_modules')
    rows = {name: found.tensors.pop(name) for name in list(found.tensors) if name.endswith(ROWS)}
    places = {}
    for name, value in rows.items():
        module = name.removesuffix(ROWS).removesuffix('.token_adapter')
        place = found.names.place_of_module(module)
        if place is not None and place.slot.path.endswith('embedding'):
            places[place.slot.path] = value
    if len(places) != 1:
        raise CheckpointError(f'{found.where} holds rows of {sorted(rows)}, one embedding is meant')
    (path, value), *_ = places.items()
    # A tied head's rows stand in the file as well.
    if any(not np.array_equal(value, other) for other in rows.values()):
        raise CheckpointError(f'{found.where}: the rows {sorted(rows)} of one table differ')
    transform = trainable_tokens(indices, targets=re.escape(path))
    return transform, Entry('trainable_tokens', {path: value})


def refuse_tied(found: Found, module: str) -> None:
    if found.names.tied:
        raise CheckpointError(
            f'{found.where} changes {module.removeprefix(ROOT)} where it is looked up and not '
            'where it is the head, although the model ties the two; here an adapter acts on both'
        )


def check_shapes(model: Model, where: str, part: Part) -> None:
    transform, adapter = part
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    abstract = model.replace(params=shapes)
    try:
        expected, _ = jax.eval_shape(transform.init, jax.random.key(0), abstract)
    except ValueError as error:
        raise CheckpointError(f'{where} does not fit this model: {error}') from error
    mine, theirs = paths.flatten(expected), paths.flatten(adapter)
    wrong = [
        f'{path} is {theirs[path].shape if path in theirs else "missing"}, needs {leaf.shape}'
        for path, leaf in mine.items()
        if path not in theirs or theirs[path].shape != leaf.shape
    ]
    if wrong or set(theirs) - set(mine):
        extra = sorted(set(theirs) - set(mine))
        raise CheckpointError(
            f'{where} does not fit this model and its config: {"; ".join(wrong[:8])}'
            + (f'; not expected: {extra[:8]}' if extra else '')
        )
