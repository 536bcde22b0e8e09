"""One adapter of a file of AdapterHub, while it is read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.core.entries import Adapter, Entry
from peftjax.core.transform import PeftTransform
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.config import PeftConfig
from peftjax.interop.peft.names import sliced, stacked
from peftjax.models.names import Slot

Part = tuple[PeftTransform, Adapter]
Arrays = dict[str, np.ndarray]
Written = tuple[Arrays, dict[str, Any]]
"""Tensors, and the part of adapter_config.json that describes them."""

# Our leaf, their tensor below the adapter's name, and how ours is made from theirs.
Table = Sequence[tuple[str, str, str]]
_TURN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{'transposed': np.transpose, 'first': lambda value: value[None], 'same': np.asarray}
}


@dataclasses.dataclass
class File:
    """The adapter called `name`; what is taken is removed from `tensors`.

    flexible: whether it was made in one of the library's own classes, which have their own heads.
    told: by argument of `load_adapter`, what the caller says and the file does not; what is used is
    removed.
    """

    hub: Hub
    config: PeftConfig
    tensors: Arrays
    name: str
    flexible: bool
    told: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def where(self) -> str:
        return self.config.where

    def take(self, tensor: str, *shape: int | None) -> np.ndarray:
        """A tensor, None in `shape` for any size.

        Raises:
            CheckpointError: the tensor is not there, or has another shape.
        """
        value = self.tensors.pop(tensor, None)
        if value is None:
            raise CheckpointError(f'{self.where} lacks {tensor}')
        if shape and (
            value.ndim != len(shape)
            or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True))
        ):
            raise CheckpointError(f'{self.where}: {tensor} is {value.shape}, needs {shape}')
        return value

    def first(self, value: np.ndarray, tensor: str) -> np.ndarray:
        """The value without its leading axis of one."""
        if value.ndim < 1 or len(value) != 1:
            raise CheckpointError(
                f'{self.where}: {tensor} is {value.shape}, needs a first axis of one'
            )
        return value[0]

    def switch(self, field: str) -> bool:
        """A field that is true or false, by default false."""
        self.config.must_be(field, False, True)
        return bool(self.config.get(field))

    def locations(self, inside: str) -> list[str]:
        """The parts of tensor names in front of `inside`."""
        return sorted({n.partition(inside)[0] for n in self.tensors if inside in n})

    def sites(
        self,
        inside: str,
        find: Callable[[str], tuple[Slot, int] | None],
        read: Callable[[str], Arrays],
    ) -> dict[str, Arrays]:
        """`{our module: arrays}` of all modules that have tensors with `inside` in their names.

        find: gives the module of a location, and which of its layers it is. read: gives the arrays
        whose tensors begin with a name.

        Raises:
            CheckpointError: a location that is not a module of this model; see also `stacked`.
        """
        layers: dict[str, dict[int, Arrays]] = {}
        slots: dict[str, Slot] = {}
        for location in self.locations(inside):
            found = find(location)
            if found is None:
                raise CheckpointError(
                    f'{self.where}: {location} is not a place of an adapter in this model; its '
                    f'places are {", ".join((*self.hub.places.branches, *self.hub.places.layers))}'
                )
            slot, index = found
            slots[slot.path] = slot
            layers.setdefault(slot.path, {})[index] = read(f'{location}{inside}')
        return {path: stacked(slots[path], each, self.where) for path, each in layers.items()}

    def leaves(self, start: str, table: Table) -> Arrays:
        """The arrays of a table, whose tensors begin with `start`."""
        found = {}
        for ours, theirs, how in table:
            value = self.take(f'{start}{theirs}')
            if how == 'first':
                value = self.first(value, f'{start}{theirs}')
            found[ours] = value.T if how == 'transposed' else value
        return found


def entries(method: str, sites: Mapping[str, Any]) -> dict[str, Entry]:
    """The adapter's entries of a method on modules."""
    return {path: Entry(method, arrays) for path, arrays in sites.items()}


def give(
    slots: Sequence[Slot], sites: Mapping[str, Any], inside: str, table: Table
) -> dict[str, np.ndarray]:
    """Tensors of the arrays of a table at modules, layer by layer.

    Raises:
        ValueError: a module that is not in `slots`.
    """
    known = {slot.path: slot for slot in slots}
    if strange := sorted(set(sites) - set(known)):
        raise ValueError(
            f'{strange} are not places of an adapter in AdapterHub; those of this model are '
            f'{sorted(known)}'
        )
    tensors = {}
    for path, leaves in sites.items():
        for ours, theirs, how in table:
            for index, location in enumerate(known[path].names):
                value = sliced(known[path], leaves[ours], index)
                tensors[f'{location}{inside}{theirs}'] = _TURN[how](value)
    return tensors


def left_out(hub: Hub, layers: set[int]) -> list[int]:
    """`leave_out`: the layers without an adapter."""
    everything = range(hub.model.config.num_hidden_layers)  # pyright: ignore[reportOptionalMemberAccess]
    return [layer for layer in everything if layer not in layers]
