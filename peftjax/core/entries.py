"""Entries: the arrays of an adapter by name, with the method that they belong to."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax

from peftjax.core import paths, readable
from peftjax.core.errors import AdapterError
from peftjax.core.holes import Hole
from peftjax.core.layout import Layout
from peftjax.core.quantized import QuantizedArray

Adapter = Any
"""A pytree of arrays that trains. In a chain, a tuple or dict with one part for each method."""


@jax.tree_util.register_pytree_with_keys_class
class Entry(Mapping[str, Any]):
    """The arrays that a method trains at one site, or for the whole model, by name.

    Reads like a dict: `adapter['dense/kernel']['a']`. A pytree; the method and the layout are its
    static part, so that an adapter cannot be mistaken for one of another method.

    Attributes:
      method: the name of the method that made it.
      layout: of the leaf that the arrays change, if there is one. Each array then has the axes of
        `layout.stack` in front.
    """

    def __init__(self, method: str, arrays: Mapping[str, Any], layout: Layout | None = None):
        self.method = method
        self.layout = layout
        self._arrays = dict(arrays)

    @property
    def label(self) -> str:
        """The name of the method, as files record it."""
        return self.method

    def replace(self, **arrays: Any) -> 'Entry':
        """A copy of the entry with some arrays replaced or added."""
        return Entry(self.method, {**self._arrays, **arrays}, self.layout)

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        arrays = {name: readable.told(array) for name, array in self._arrays.items()}
        line = f'{self.method}({", ".join(f"{name} {text}" for name, text in arrays.items())})'
        if len(line) <= readable.WIDTH:
            return line
        return readable.under(self.method, readable.outline(self._arrays))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        names = tuple(sorted(self._arrays))
        children = [(jax.tree_util.DictKey(name), self._arrays[name]) for name in names]
        return children, (self.method, self.layout, names)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> 'Entry':
        method, layout, names = static
        return cls(method, dict(zip(names, children, strict=True)), layout)


NODES: list[type] = [Entry, Hole, QuantizedArray]
"""The classes of pytree nodes in adapters and frozen parts; `flax.serialization` learns them."""


def check_entries(adapter: Any, method: str, names: Collection[str] | None = None) -> None:
    """Raises `AdapterError` unless `adapter` is `{site path: Entry}`, each entry of `method`.

    names: of the arrays in each entry, where the method's settings decide them.
    """
    if not isinstance(adapter, Mapping) or isinstance(adapter, Entry):
        raise AdapterError(_other(method, f'a dict of entries of {method}', found_in(adapter)))
    for path, entry in adapter.items():
        check_entry(entry, method, f' at {path!r}')
        if names is not None and set(entry) != set(names):
            raise AdapterError(
                f'{method} with these settings expects the arrays {sorted(names)} at {path!r}, '
                f'found {sorted(entry)}. Was the adapter made with other settings?'
            )


def check_entry(entry: Any, method: str, where: str = '') -> None:
    """Raises `AdapterError` unless `entry` is an `Entry` of `method`."""
    if not isinstance(entry, Entry) or entry.method != method:
        raise AdapterError(_other(method, f'an entry of {method}', found_in(entry) + where))


def check_own(own: Any, adapter: Collection[str], method: str) -> None:
    """Raises `AdapterError` unless `own` is an `Entry` of the method's numbers for each site."""
    if not isinstance(own, Entry) or own.method != method:
        parts = isinstance(own, (tuple, list, Mapping)) and not isinstance(own, Entry) and len(own)
        found = f'frozen is of a chain of {parts}' if parts else f'it is {found_in(own)}'
        raise AdapterError(
            f'frozen.own has no numbers of {method}: {found}, made by another transform; pass the '
            'frozen that init returned with this adapter'
        )
    if unknown := sorted(set(adapter) - set(own)):
        raise AdapterError(
            f'the adapter of {method} has {unknown[0]!r}, for which frozen.own has no numbers of '
            f'{method}{paths.nearby(unknown[0], own)}. Was one of the two made for another model, '
            'or by another transform?'
        )


def _other(method: str, expected: str, found: str) -> str:
    return (
        f'{method} expects {expected} as its own init makes it, found {found}. Was it made by '
        "another transform, or is it a part of a chain's adapter?"
    )


def found_in(adapter: Any) -> str:
    """Describes an object that should be an adapter, for messages."""
    if isinstance(adapter, Entry):
        return f'an entry of {adapter.method}'
    if isinstance(adapter, jax.Array):
        return 'an array'
    if isinstance(adapter, Mapping):
        of = sorted({each.method for each in adapter.values() if isinstance(each, Entry)})
        what = f'a dict of entries of {", ".join(of)}' if of else 'a dict'
        return f'{what} with {sorted(map(str, adapter))[:5]}'
    return f'a {type(adapter).__name__}'


def holds_entries(tree: Any) -> bool:
    """Whether a tree is an adapter, or has one among its nodes."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Entry))
    return any(isinstance(node, Entry) for node in nodes)


def is_abstract(adapter: Adapter) -> bool:
    """Whether an adapter holds only shapes (`jax.ShapeDtypeStruct`)."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(adapter))
