"""How a parameter leaf of any rank is read as a stack of matrices."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Inexact


@dataclasses.dataclass(frozen=True)
class Layout:
    """The role of each axis of a parameter: stack, input or output.

    The layout reads a parameter as a stack of matrices `[in, out]`. The first use in the model
    decides the roles. Methods on weights see only the matrix form `[*stack, in, out]`; the axes of
    each role keep their order.

    Attributes:
      shape: shape of the parameter.
      stack: axes that count independent matrices (scanned layers, experts).
      rows: input axes. The first use contracts them; a lookup indexes them.
      columns: output axes, which are all other axes.
      lookup: True if the first use is a lookup (an embedding). A row is then one input symbol.
      opaque: True if tracing could not follow the uses. A method can then only replace the
        parameter by the merged weight.

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
