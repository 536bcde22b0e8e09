"""A mark in a tree for a leaf that moved to another tree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Hole:
    """Takes the place of a leaf that another tree has. It is a pytree without leaves.

    Attributes:
      shape, dtype: of the leaf; None if the leaf is not an array.

    >>> Hole.of(jnp.ones((2, 3)))
    Hole((2, 3) float32)
    >>> jax.tree.leaves(Hole.of(jnp.ones(2)))
    []
    """

    shape: tuple[int, ...] | None = None
    dtype: Any = None

    @classmethod
    def of(cls, leaf: Any) -> 'Hole':
        """The mark for `leaf`."""
        if not hasattr(leaf, 'shape'):
            return cls()
        return cls(tuple(leaf.shape), jnp.dtype(leaf.dtype))

    def __repr__(self) -> str:
        return 'Hole()' if self.shape is None else f'Hole({self.shape} {self.dtype})'


def is_hole(node: Any) -> bool:
    return isinstance(node, Hole)
