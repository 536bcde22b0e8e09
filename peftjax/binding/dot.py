"""Contractions: `dot_general` with a weight as one operand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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
from peftjax.binding.views import View, rearrange
from peftjax.core.use import Use


@dataclasses.dataclass(frozen=True)
class Dot:
    """`dot_general` with a view as one operand."""

    operation: operations.Dot
    eqn: Any
    view: View
    x: jax.Array
    side: int

    def _axes(self) -> tuple[Any, Any, Any, Any]:
        contract, batch = self.operation.contract, self.operation.batch
        return (
            contract[1 - self.side],
            contract[self.side],
            batch[1 - self.side],
            batch[self.side],
        )

    def facts(self) -> Facts:
        _, contract, _, batch = self._axes()
        dims = self.view.dims
        for i in batch:
            self.view.whole_axis(i)
        return read_facts(
            'dot',
            self.view,
            factors_of(dims[i] for i in batch),
            factors_of(dims[i] for i in contract),
            factors_of(dims[i] for i in range(len(dims)) if i not in (*contract, *batch)),
        )

    def run(self, state: Any, rule: Forward, transposed: bool) -> jax.Array:
        x_contract, contract, x_batch, batch = self._axes()
        dims, out = self.view.dims, self.eqn.outvars[0].aval
        x_groups = [(Free(i, size),) for i, size in enumerate(self.x.shape)]
        for mine, theirs in [
            *zip(x_contract, contract, strict=True),
            *zip(x_batch, batch, strict=False),
        ]:
            x_groups[mine] = dims[theirs]
        stack = in_leaf_order(factors_of(dims[i] for i in batch))
        inner = in_leaf_order(factors_of(dims[i] for i in contract))
        free = [i for i in range(self.x.ndim) if i not in (*x_contract, *x_batch)]
        tokens = [x_groups[i][0] for i in free]
        kept = [i for i in range(len(dims)) if i not in (*contract, *batch)]
        outer = in_leaf_order(factors_of(dims[i] for i in kept))
        sizes = [factor.size for factor in stack]
        x = rearrange(
            self.x, x_groups, [*stack, *tokens, *inner], [*sizes, size_of(tokens), size_of(inner)]
        )
        rows, columns = (outer, inner) if transposed else (inner, outer)
        matrix = rearrange(
            self.view.value,
            dims,
            [*stack, *rows, *columns],
            [*sizes, size_of(rows), size_of(columns)],
        )
        call = _dot_use(self.operation, transposed, rule, tuple(label.size for label in tokens))
        for _ in stack:
            call = jax.vmap(call)
        leaves, key = state
        keys = jax.random.split(key, tuple(sizes)) if stack and key is not None else key
        y = call(x, matrix, (leaves, keys))
        x_free, w_free = [(x_groups[i]) for i in free], [dims[i] for i in kept]
        sides = (w_free, x_free) if self.side == 0 else (x_free, w_free)
        order = factors_of([*(dims[i] for i in batch), *sides[0], *sides[1]])
        groups = [(label,) for label in stack] + [tokens, outer]
        return rearrange(y, groups, order, out.shape).astype(out.dtype)


def _dot_use(
    operation: operations.Dot, transposed: bool, rule: Forward, tokens: tuple[int, ...]
) -> Callable[..., jax.Array]:
    def dot(x: jax.Array, m: jax.Array) -> jax.Array:
        return lax.dot_general(
            x,
            m,
            (((1,), (1 if transposed else 0,)), ((), ())),
            precision=operation.precision,
            preferred_element_type=operation.preferred_element_type,
        )

    def call(x: jax.Array, matrix: jax.Array, state: Any) -> jax.Array:
        # Operands may be of integers or booleans (one-hot rows); the weight is never.
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else matrix.dtype

        def product(x: jax.Array, m: jax.Array) -> jax.Array:
            return dot(x, m.astype(dtype))

        def lowrank(
            x: jax.Array, a: jax.Array, b: jax.Array, middle: jax.Array | None = None
        ) -> jax.Array:
            first, second = (b, a) if transposed else (a, b)
            return product(scaled(product(x, first).astype(dtype), middle), second)

        leaves, key = state
        use = Use(
            x,
            tokens,
            'dot',
            transposed,
            key,
            dtype,
            forward=lambda x: dot(x, matrix),
            weight=lambda: matrix,
            product=product,
            lowrank=lowrank,
        )
        return rule(leaves, use)

    return call
