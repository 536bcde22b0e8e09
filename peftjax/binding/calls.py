"""Calls: the arguments of a model split into arrays and static values."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of one call.

    Attributes:
      arrays: its arrays (or `ShapeDtypeStruct`s), in order.
      structure: of the arguments, with a mark in the place of each array (static, hashable).
    """

    arrays: tuple[Any, ...]
    structure: 'Structure'

    def function(self, apply: Callable[..., Any]) -> Callable[[Any, Any], Any]:
        """`apply` as a function of `(params, arrays)`."""
        return self.structure.function(apply)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` as they were given to `split`."""
        return self.structure.arguments(self.arrays)


@dataclasses.dataclass(frozen=True)
class Structure:
    """The static part of a call, on which a compiled program depends."""

    tree: Any
    leaves: tuple[Any, ...]

    def function(self, apply: Callable[..., Any]) -> Callable[[Any, Any], Any]:
        def call(params: Any, arrays: Any) -> Any:
            args, kwargs = self.arguments(arrays)
            return apply(params, *args, **kwargs)

        return call

    def arguments(self, arrays: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` with `arrays` in their places."""
        rest = iter(arrays)
        leaves = [next(rest) if leaf is _ARRAY else leaf.value for leaf in self.leaves]
        return jax.tree.unflatten(self.tree, leaves)


class _ArrayMark:
    def __repr__(self) -> str:
        return '<array>'


_ARRAY = _ArrayMark()


@dataclasses.dataclass(frozen=True)
class _Static:
    """A static argument; `1`, `1.0` and `True` differ, as they do for the model."""

    kind: type
    value: Any


def split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Arguments as a `Call`: arrays and NumPy values are traced, anything else is static.

    Raises:
      TypeError: a static argument is not hashable, with its place in the call.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
    arrays, leaves = [], []
    for path, leaf in paths:
        if isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            arrays.append(leaf)
            leaves.append(_ARRAY)
            continue
        try:
            hash(leaf)
        except TypeError as error:
            raise TypeError(
                f'argument {jax.tree_util.keystr(path[1:])} is a '
                f'{type(leaf).__name__}, neither an array nor hashable; write an array for data, '
                'or a tuple or a string for a static value'
            ) from error
        leaves.append(_Static(type(leaf), leaf))
    return Call(tuple(arrays), Structure(tree, tuple(leaves)))


def example(inputs: Any) -> Call:
    """Example inputs as a call: a dict gives keywords, a tuple positions, else one position."""
    if isinstance(inputs, dict):
        return split((), inputs)
    return split(inputs if isinstance(inputs, tuple) else (inputs,), {})
