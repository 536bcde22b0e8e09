"""Views: rearranged weight leaves, or slices of the stack of a leaf."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.binding import operations
from peftjax.core.quantized import QuantizedArray, is_quantized


class Refused(Exception):
    """The weight cannot be followed through this operation; the message says why."""


class Factor(NamedTuple):
    """A factor of one leaf axis: the indices `stride * i`, for `i < size`, of that axis."""

    axis: int
    stride: int
    size: int


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A weight leaf being followed.

    Attributes:
      path: its path in `params`.
      shape: its shape there.
      picked: leaf axes that a scan or an index has removed.
      stack: leaf axes that the arrays of `state` still have in front.
      state: the rule's arrays for this slice of the stack, and its key; None while discovering.
    """

    path: str
    shape: tuple[int, ...]
    picked: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()
    state: Any = None

    def pick(self, axis: int, index: Any) -> 'Leaf':
        """The leaf without `axis`, at `index` of it."""

        def at(array: jax.Array) -> jax.Array:
            return lax.dynamic_index_in_dim(array, index, position, keepdims=False)

        state = self.state
        if state is not None:
            position, (leaves, key) = self.stack_position(axis), state
            key = None if key is None else jax.random.fold_in(key, index)
            state = jax.tree.map(at, leaves), key
        return self.without(axis, state)

    def without(self, axis: int, state: Any) -> 'Leaf':
        return Leaf(
            self.path,
            self.shape,
            (*self.picked, axis),
            tuple(a for a in self.stack if a != axis),
            state,
        )

    def stack_position(self, axis: int) -> int:
        if axis not in self.stack:
            raise Refused(
                f'this call takes slices of axis {axis}, the example inputs did not; '
                'wrap the model with example inputs that take the same path'
            )
        return self.stack.index(axis)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """A quantised leaf on its way to a use, which dequantises it.

    Attributes:
      array: the leaf, or the slice that a scan took of it.
      steps: the operations to apply after it is read, with the shapes of their results.
    """

    array: QuantizedArray
    steps: tuple[tuple[Callable[[jax.Array], jax.Array], tuple[int, ...]], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.steps[-1][1] if self.steps else self.array.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def then(self, step: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> 'Packed':
        return Packed(self.array, (*self.steps, (step, shape)))

    def read(self) -> jax.Array:
        value = self.array.dequantize()
        for step, _ in self.steps:
            value = step(value)
        return value

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.array,), self.steps

    @classmethod
    def tree_unflatten(cls, steps: Any, children: Any) -> 'Packed':
        return cls(children[0], steps)


@dataclasses.dataclass(frozen=True)
class View:
    """A value that is a rearranged leaf.

    Attributes:
      leaf: which.
      value: the array itself, or a quantised leaf that has not been read yet.
      dims: for each axis of `value` the factors of the leaf it is made of, outermost first; an
        axis of size one has none.
    """

    leaf: Leaf
    value: Any
    dims: tuple[tuple[Factor, ...], ...]

    def whole_axis(self, dim: int) -> int:
        """The leaf axis that `dim` covers, if it is one whole axis."""
        group = self.dims[dim]
        if (
            len(group) == 1
            and group[0].stride == 1
            and (group[0].size == self.leaf.shape[group[0].axis])
        ):
            return group[0].axis
        raise Refused('an axis is taken apart before it is scanned, indexed or looked up')


def start(path: str, value: Any) -> View:
    """The leaf itself as a view."""
    dims = tuple((Factor(axis, 1, size),) for axis, size in enumerate(value.shape))
    return View(Leaf(path, value.shape), Packed(value) if is_quantized(value) else value, dims)


def _transpose(view: View, value: Any, operation: operations.Transpose) -> View:
    return View(view.leaf, value, tuple(view.dims[i] for i in operation.permutation))


def _reshape(view: View, value: Any, operation: operations.Reshape) -> View:
    if operation.dimensions is not None:
        raise Refused('it is reshaped in permuted order')
    factors = list(_joined([factor for group in view.dims for factor in group]))[::-1]
    dims = []
    for size in value.shape:
        group: list[Factor] = []
        while math.prod(factor.size for factor in group) < size:
            needed, rest = divmod(size, math.prod(factor.size for factor in group))
            if rest:
                raise Refused(f'it is reshaped to {value.shape}, across its axes')
            factor = factors.pop()
            if factor.size > needed:
                if factor.size % needed:
                    raise Refused(f'it is reshaped to {value.shape}, across its axes')
                inner = factor.size // needed
                factors.append(Factor(factor.axis, factor.stride, inner))
                factor = Factor(factor.axis, factor.stride * inner, needed)
            group.append(factor)
        if math.prod(factor.size for factor in group) != size:
            raise Refused(f'it is reshaped to {value.shape}, across its axes')
        dims.append(_joined(group))
    return View(view.leaf, value, tuple(dims))


def _joined(group: Sequence[Factor]) -> tuple[Factor, ...]:
    """Joins neighbouring factors of the same leaf axis."""
    joined: list[Factor] = []
    for factor in group:
        last = joined[-1] if joined else None
        if last and last.axis == factor.axis and last.stride == factor.stride * factor.size:
            joined[-1] = Factor(factor.axis, factor.stride, last.size * factor.size)
        else:
            joined.append(factor)
    return tuple(joined)


def _squeeze(view: View, value: Any, operation: operations.Squeeze) -> View:
    gone = operation.dimensions
    return View(view.leaf, value, tuple(g for i, g in enumerate(view.dims) if i not in gone))


def _broadcast(view: View, value: Any, operation: operations.Broadcast) -> View:
    dims: list[tuple[Factor, ...]] = [()] * value.ndim
    for dim, target in enumerate(operation.dimensions):
        dims[target] = view.dims[dim]
    if math.prod(value.shape) != math.prod(view.value.shape):
        raise Refused('it is broadcast before it is used')
    return View(view.leaf, value, tuple(dims))


def _same(view: View, value: Any, operation: operations.Same | operations.Name) -> View:
    del operation
    return View(view.leaf, value, view.dims)


def _cast(view: View, value: Any, operation: operations.Cast) -> View:
    if not jnp.issubdtype(operation.dtype, jnp.floating):
        raise Refused(f'it is cast to {operation.dtype}')
    return View(view.leaf, value, view.dims)


RULES: dict[Any, Callable[[View, Any, Any], View]] = {
    operations.Transpose: _transpose,
    operations.Reshape: _reshape,
    operations.Squeeze: _squeeze,
    operations.Broadcast: _broadcast,
    operations.Cast: _cast,
    operations.Same: _same,
    operations.Name: _same,
}
"""Operations after which the value is still the leaf: `rule(view, result, operation) -> View`."""


def sliced(view: View, value: Any, sizes: Sequence[int], starts: Sequence[Any]) -> View:
    """A slice that takes single entries of whole axes, and all of the others."""
    leaf, dims = view.leaf, list(view.dims)
    for dim, (size, full) in enumerate(zip(sizes, view.value.shape, strict=True)):
        if size == full:
            continue
        if size != 1:
            raise Refused(f'{size} of {full} entries are sliced out of an axis before it is used')
        leaf = leaf.pick(view.whole_axis(dim), starts[dim])
        dims[dim] = ()
    return View(leaf, value, tuple(dims))


def rearrange(
    value: jax.Array, groups: Sequence[Sequence[Any]], order: Sequence[Any], shape: Sequence[int]
) -> jax.Array:
    """Splits each axis into the labels of its group, puts the labels in `order`, reshapes.

    Labels are unique and have a `size`.
    """
    labels = [label for group in groups for label in group]
    split = value.reshape([label.size for label in labels])
    return jnp.transpose(split, [labels.index(label) for label in order]).reshape(shape)
