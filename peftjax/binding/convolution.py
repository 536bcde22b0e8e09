"""Convolutions with a weight as the kernel."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.binding import jaxprs, operations
from peftjax.binding.uses import (
    Columns,
    Facts,
    Forward,
    factors_of,
    in_leaf_order,
    read_facts,
    scaled,
    size_of,
)
from peftjax.binding.views import Refused, View, rearrange
from peftjax.core.use import Use


@dataclasses.dataclass(frozen=True)
class Conv:
    """`conv_general_dilated` with a view as the kernel."""

    operation: operations.Convolution
    eqn: Any
    view: View
    x: jax.Array

    def _kernel_dims(self) -> tuple[int, list[int]]:
        spec = self.operation.numbers.rhs_spec
        return spec[0], list(spec[1:])

    def facts(self) -> Facts:
        if self.operation.batch_groups != 1:
            raise Refused('the convolution groups its batch')
        out, inner = self._kernel_dims()
        dims = self.view.dims
        return read_facts(
            'conv', self.view, [], factors_of(dims[i] for i in inner), list(dims[out])
        )

    def run(self, state: Any, rule: Forward, transposed: bool) -> jax.Array:
        out_dim, inner = self._kernel_dims()
        dims, out, numbers = self.view.dims, self.eqn.outvars[0].aval, self.operation.numbers
        rows = in_leaf_order(factors_of(dims[i] for i in inner))
        columns = in_leaf_order(list(dims[out_dim]))
        if transposed or columns != list(dims[out_dim]):
            raise Refused('the convolution reads it in another orientation')
        groups = self.operation.feature_groups
        matrix = rearrange(
            self.view.value, dims, [*rows, *columns], [size_of(rows), size_of(columns)]
        )
        channel = numbers.out_spec[1]

        def convolve(x: jax.Array, m: jax.Array) -> jax.Array:
            label = Columns(m.shape[1])
            order = factors_of((label,) if i == out_dim else dims[i] for i in range(len(dims)))
            shape = [
                m.shape[1] if i == out_dim else size for i, size in enumerate(self.view.value.shape)
            ]
            kernel = rearrange(m.astype(x.dtype), [rows, (label,)], order, shape)
            y = jaxprs.bind(self.eqn, [x, kernel])[0]
            return jnp.moveaxis(y, channel, -1).reshape(-1, m.shape[1])

        def lowrank(
            x: jax.Array, a: jax.Array, b: jax.Array, middle: jax.Array | None = None
        ) -> jax.Array:
            rank = a.shape[1]
            inside = convolve(x, jnp.tile(a, (1, groups))).reshape(-1, groups, rank)
            inside = scaled(inside, middle)
            grouped = b.astype(x.dtype).reshape(rank, groups, -1)
            return jnp.einsum('tgr,rgo->tgo', inside, grouped).reshape(len(inside), -1)

        leaves, key = state
        y = rule(
            leaves,
            Use(
                self.x,
                (self.x.shape[numbers.lhs_spec[0]],),
                'conv',
                False,
                key,
                self.x.dtype,
                lambda x: convolve(x, matrix),
                lambda: matrix,
                convolve,
                lowrank,
            ),
        )
        last = [size for i, size in enumerate(out.shape) if i != channel] + [out.shape[channel]]
        return jnp.moveaxis(y.reshape(last), -1, channel).astype(out.dtype)
