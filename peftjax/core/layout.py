"""How a parameter leaf of any rank is read as a stack of matrices."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Inexact


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of a leaf by what the model does with them.

    A leaf is a stack of linear maps `[in, out]`: `rows` are the axes its first use contracts (for
    a lookup, the axis it indexes), `columns` those that remain, `stack` those that number
    independent maps (scanned layers, experts). Weight methods see only the matrix form
    `[*stack, in, out]`, with the axes of each group in the leaf's own order.

    Attributes:
      shape: shape of the leaf.
      stack: axes that number independent maps.
      rows: input axes.
      columns: output axes.
      lookup: the first use is a lookup (an embedding), so that a row is one input symbol.
      opaque: the uses could not be followed; only the merged weight may take the leaf's place.

    >>> layout = Layout(shape=(2, 3, 4, 5), stack=(0,), rows=(1,), columns=(2, 3))
    >>> layout.stack_shape, layout.inputs, layout.outputs
    ((2,), 3, 20)
    """

    shape: tuple[int, ...]
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    lookup: bool = False
    opaque: bool = False

    def _size(self, axes: tuple[int, ...]) -> int:
        return math.prod(self.shape[axis] for axis in axes)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.stack)

    @property
    def inputs(self) -> int:
        return self._size(self.rows)

    @property
    def outputs(self) -> int:
        return self._size(self.columns)

    def to_matrix(self, leaf: Inexact[jax.Array, '...']) -> Inexact[jax.Array, '*stack in out']:
        """`leaf` as `[*stack, in, out]`."""
        ordered = jnp.transpose(leaf, self.stack + self.rows + self.columns)
        return ordered.reshape(*self.stack_shape, self.inputs, self.outputs)

    def from_matrix(self, matrix: Inexact[jax.Array, '*stack in out']) -> Inexact[jax.Array, '...']:
        """The inverse of `to_matrix`."""
        order = self.stack + self.rows + self.columns
        ordered = matrix.reshape([self.shape[axis] for axis in order])
        return jnp.transpose(ordered, [order.index(axis) for axis in range(len(order))])
