"""A file of peft that is being written: its tensors by module, and fields that all methods have."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from peftjax.interop.peft.found import Arrays
from peftjax.interop.peft.names import Names, not_linear, sliced

Written = tuple[dict[str, np.ndarray], dict[str, Any]]
"""Tensors, and fields of adapter_config.json."""


def layers_of(names: Names, path: str, arrays: Mapping[str, Any]) -> list[tuple[str, Arrays]]:
    """Module names, and the arrays of each layer of a leaf."""
    slot = names.slots[path]
    return [
        (
            names.module(path, index),
            {name: sliced(slot, value, index) for name, value in arrays.items()},
        )
        for index in range(len(slot.names))
    ]


def modules_of(names: Names, entries: Mapping[str, Any]) -> dict[str, Arrays]:
    """Arrays of all layers of all leaves, by module."""
    return dict(pair for path, entry in entries.items() for pair in layers_of(names, path, entry))


def linear_alone(names: Names, paths: Iterable[str], *, conv1d: bool = True) -> None:
    """Raises ValueError for leaves of other modules than linear layers (GPT-2's if `conv1d`)."""
    found = [names.slots[path] for path in paths]
    if told := not_linear(found):
        raise ValueError(told)
    for slot in found:
        if not (conv1d or slot.transposed):
            raise ValueError(
                f'{slot.path!r} is a Conv1D of transformers, where peft does not have this method'
            )


def common(names: Names, kind: str, modules: Iterable[str]) -> dict[str, Any]:
    """Fields of every method that acts on modules."""
    return {'peft_type': kind, 'target_modules': names.short(modules), 'modules_to_save': None}


def conv1d(names: Names, entries: Iterable[str]) -> bool:
    """Whether the base's file stores these matrices as [in, out], which is a field in peft."""
    return any(not names.slots[path].transposed and path.endswith('kernel') for path in entries)
