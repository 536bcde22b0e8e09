"""Rows of an embedding that are trained for single tokens, in and out."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.core.entries import Entry
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, Part
from peftjax.interop.peft.names import ROOT, Names
from peftjax.interop.peft.written import Written, common
from peftjax.methods.trainable_tokens import trainable_tokens

_ROWS = '.trainable_tokens_delta'


def read_tokens(found: Found) -> Part:
    """Rows of one embedding; the file calls them a change, but they are new rows."""
    config = found.config
    indices = config.get('trainable_token_indices') or config.get('token_indices')
    if isinstance(indices, dict) and len(indices) == 1:
        (indices,) = indices.values()
    if not isinstance(indices, list) or not all(type(each) is int for each in indices):
        raise CheckpointError(f'{config.where}: {indices!r} are not the tokens of one embedding')
    config.get('target_modules')
    rows = {name: found.tensors.pop(name) for name in list(found.tensors) if name.endswith(_ROWS)}
    places = {}
    for name, value in rows.items():
        module = name.removesuffix(_ROWS).removesuffix('.token_adapter')
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


def write_tokens(names: Names, rows: Mapping[Any, Any]) -> Written:
    """Rows without a method beside them."""
    ((ids, tables),) = rows.items()
    ((path, value),) = tables.items()
    module = names.module(path, 0)
    tensors = {f'{ROOT}{module}{_ROWS}': np.asarray(value)}
    if names.tied:
        tensors[f'{ROOT}lm_head{_ROWS}'] = np.asarray(value)
    return tensors, {
        **common(names, 'TRAINABLE_TOKENS', [module]),
        'token_indices': list(map(int, ids)),
    }


def write_tokens_beside(names: Names, rows: Mapping[Any, Any]) -> Written:
    """What rows add to the file of a method."""
    tensors, fields = {}, {}
    for ids, tables in rows.items():
        ((path, value),) = tables.items()
        module = names.module(path, 0)
        tensors[f'{ROOT}{module}.token_adapter{_ROWS}'] = np.asarray(value)
        fields['trainable_token_indices'] = {module.rpartition('.')[2]: list(map(int, ids))}
    return tensors, fields
