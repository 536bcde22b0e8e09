"""Lookups: `gather` of whole rows of a weight, and single entries of a stack."""

import dataclasses
from typing import Any

import jax
from jax import lax

from peftjax.binding import operations
from peftjax.binding.uses import (
    Facts,
    Forward,
    Free,
    factors_of,
    in_leaf_order,
    read_facts,
    scaled,
    size_of,
)
from peftjax.binding.views import Refused, View, rearrange
from peftjax.core.use import Use


@dataclasses.dataclass(frozen=True)
class Lookup:
    """`gather` of whole rows of a view."""

    operation: operations.Gather
    eqn: Any
    view: View
    indices: jax.Array

    def dim(self) -> int:
        """The one axis of the view that the indices number."""
        shape, numbers, sizes = self.view.value.shape, self.operation.numbers, self.operation.sizes
        cut = [i for i, (size, full) in enumerate(zip(sizes, shape, strict=True)) if size != full]
        # `vmap` of `w[i]` indexes the whole axes too; their index is held at zero.
        if len(numbers.start_index_map) == 1:
            cut = sorted({*cut, *numbers.start_index_map})
        elif self.operation.fills:
            raise Refused('its entries are gathered along several axes')
        if numbers.operand_batching_dims or not {*cut} <= {*numbers.start_index_map}:
            raise Refused('parts of its rows are gathered, or rows of several tables at once')
        if len(cut) != 1 or sizes[cut[0]] != 1:
            raise Refused('its entries are gathered along several axes')
        return cut[0]

    def _ids(self) -> jax.Array:
        """The indices along `dim`, one for each token."""
        position = self.operation.numbers.start_index_map.index(self.dim())
        return self.indices[..., position].reshape(-1)

    def picks_stack(self) -> bool:
        """Whether this is `w[i]` of a stack, with a scalar index, and not a lookup of one token.


        Both are the same operation. If there is a rule, the stack of its leaf decides.
        """
        collapsed = self.operation.numbers.collapsed_slice_dims
        if self.indices.ndim != 1 or len(self.view.dims) <= 2 or not collapsed:
            return False
        leaf = self.view.leaf
        return leaf.state is None or self.view.whole_axis(self.dim()) in leaf.stack

    def picked(self, value: jax.Array) -> View:
        dim = self.dim()
        leaf = self.view.leaf.pick(self.view.whole_axis(dim), self._ids()[0])
        return View(leaf, value, tuple(g for i, g in enumerate(self.view.dims) if i != dim))

    def facts(self) -> Facts:
        dim = self.dim()
        self.view.whole_axis(dim)
        others = factors_of(g for i, g in enumerate(self.view.dims) if i != dim)
        return read_facts('lookup', self.view, [], list(self.view.dims[dim]), others)

    def _labels(self, i: int) -> Any:
        """The factors of an axis of the result; for the axis of the lookup, a single entry."""
        return () if i == self.dim() else self.view.dims[i]

    def run(self, state: Any, rule: Forward, transposed: bool) -> jax.Array:
        if transposed:
            raise Refused('it is looked up along its output axis')
        dim, out = self.dim(), self.eqn.outvars[0].aval
        kept = [i for i in range(len(self.view.dims)) if i != dim]
        rows, columns = (
            list(self.view.dims[dim]),
            in_leaf_order(factors_of(self.view.dims[i] for i in kept)),
        )
        tokens = [Free(i, size) for i, size in enumerate(self.indices.shape[:-1])]
        matrix = rearrange(
            self.view.value, self.view.dims, [*rows, *columns], [size_of(rows), size_of(columns)]
        )
        numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))

        def take(x: jax.Array, m: jax.Array) -> jax.Array:
            rows = lax.gather(m, x[:, None], numbers, (1, m.shape[1]), **self.operation.options)
            return rows.astype(out.dtype)

        def lowrank(
            x: jax.Array, a: jax.Array, b: jax.Array, middle: jax.Array | None = None
        ) -> jax.Array:
            return scaled(take(x, a), middle) @ b.astype(out.dtype)

        leaves, key = state
        y = rule(
            leaves,
            Use(
                self._ids(),
                tuple(label.size for label in tokens),
                'lookup',
                False,
                key,
                out.dtype,
                lambda x: take(x, matrix),
                lambda: matrix,
                take,
                lowrank,
            ),
        )
        spec, outside = self.operation.numbers, iter(tokens)
        inside = (i for i in range(len(self.view.dims)) if i not in spec.collapsed_slice_dims)
        order = factors_of(
            self._labels(next(inside)) if i in spec.offset_dims else (next(outside),)
            for i in range(len(out.shape))
        )
        return rearrange(y, [tokens, columns], order, out.shape).astype(out.dtype)
