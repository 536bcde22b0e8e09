"""Uses: contractions, lookups and convolutions of a view, brought to the form of one matrix.

Each kind of use is a frozen value with `facts` (which leaf axes it contracts) and `run`, which
evaluates it by a rule. Letters: `T` tokens, `in`, `out` as in `peftjax.core.layout`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.binding.views import Atom, Refused, View, rearrange
from peftjax.core.base import Use

Forward = Callable[[Any, Use], jax.Array]


class Free(NamedTuple):
    """An axis that no weight has."""

    axis: int
    size: int


class Columns(NamedTuple):
    """The output axis of a substitute matrix."""

    size: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What one use does with the axes of its leaf."""

    kind: str
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def _facts(
    kind: str, view: View, batch: list[Atom], rows: list[Atom], columns: list[Atom]
) -> Facts:
    axes = [{atom.axis for atom in group} for group in (batch, rows, columns)]
    if axes[0] & axes[1] or axes[0] & axes[2] or axes[1] & axes[2]:
        raise Refused('one axis of it is contracted in part')
    free = set(range(len(view.leaf.shape))) - set(view.leaf.picked) - axes[0] - axes[1]
    stack = sorted({*view.leaf.picked, *axes[0]})
    # An axis of size one may have lost its atom to a reshape; it is free, hence a column.
    return Facts(kind, tuple(stack), tuple(sorted(axes[1])), tuple(sorted(free)))


@dataclasses.dataclass(frozen=True)
class Dot:
    """`dot_general` with a view as one operand."""

    eqn: Any
    view: View
    x: jax.Array
    side: int

    def _axes(self) -> tuple[Any, Any, Any, Any]:
        contract, batch = self.eqn.params['dimension_numbers']
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
        return _facts(
            'dot',
            self.view,
            _atoms(dims[i] for i in batch),
            _atoms(dims[i] for i in contract),
            _atoms(dims[i] for i in range(len(dims)) if i not in (*contract, *batch)),
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
        stack = _sorted(_atoms(dims[i] for i in batch))
        inner = _sorted(_atoms(dims[i] for i in contract))
        free = [i for i in range(self.x.ndim) if i not in (*x_contract, *x_batch)]
        tokens = [x_groups[i][0] for i in free]
        kept = [i for i in range(len(dims)) if i not in (*contract, *batch)]
        outer = _sorted(_atoms(dims[i] for i in kept))
        sizes = [atom.size for atom in stack]
        x = rearrange(
            self.x, x_groups, [*stack, *tokens, *inner], [*sizes, _size(tokens), _size(inner)]
        )
        rows, columns = (outer, inner) if transposed else (inner, outer)
        matrix = rearrange(
            self.view.value, dims, [*stack, *rows, *columns], [*sizes, _size(rows), _size(columns)]
        )
        call = _dot_use(self.eqn, transposed, rule)
        for _ in stack:
            call = jax.vmap(call)
        leaves, key = state
        keys = jax.random.split(key, tuple(sizes)) if stack and key is not None else key
        y = call(x, matrix, (leaves, keys))
        x_free, w_free = [(x_groups[i]) for i in free], [dims[i] for i in kept]
        sides = (w_free, x_free) if self.side == 0 else (x_free, w_free)
        order = _atoms([*(dims[i] for i in batch), *sides[0], *sides[1]])
        groups = [(label,) for label in stack] + [tokens, outer]
        return rearrange(y, groups, order, out.shape).astype(out.dtype)


def _dot_use(eqn: Any, transposed: bool, rule: Forward) -> Callable[..., jax.Array]:
    def dot(x: jax.Array, m: jax.Array) -> jax.Array:
        return lax.dot_general(
            x,
            m,
            (((1,), (1 if transposed else 0,)), ((), ())),
            precision=eqn.params['precision'],
            preferred_element_type=eqn.params['preferred_element_type'],
        )

    def call(x: jax.Array, matrix: jax.Array, state: Any) -> jax.Array:
        # Operands may be of integers or booleans (one-hot rows); the weight is never.
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else matrix.dtype

        def product(x: jax.Array, m: jax.Array) -> jax.Array:
            return dot(x, m.astype(dtype))

        def lowrank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
            first, second = (b, a) if transposed else (a, b)
            return product(product(x, first).astype(dtype), second)

        leaves, key = state
        use = Use(
            x,
            'dot',
            transposed,
            key,
            dtype,
            base=lambda x: dot(x, matrix),
            weight=lambda: matrix,
            product=product,
            lowrank=lowrank,
        )
        return rule(leaves, use)

    return call


@dataclasses.dataclass(frozen=True)
class Lookup:
    """`gather` of whole rows of a view."""

    eqn: Any
    view: View
    indices: jax.Array

    def dim(self) -> int:
        """The one axis of the view that the indices number."""
        numbers, sizes = self.eqn.params['dimension_numbers'], self.eqn.params['slice_sizes']
        if (
            len(numbers.start_index_map) != 1
            or numbers.operand_batching_dims
            or (tuple(numbers.collapsed_slice_dims) != tuple(numbers.start_index_map))
        ):
            raise Refused('its entries are gathered along several axes')
        dim = numbers.start_index_map[0]
        if any(
            size != full
            for i, (size, full) in enumerate(zip(sizes, self.view.value.shape, strict=True))
            if i != dim
        ):
            raise Refused('parts of its rows are gathered')
        return dim

    def picks_stack(self) -> bool:
        """Whether this is `w[i]` of a stack, with a scalar index, and not a lookup of one token.

        The two are one operation; once there is a rule, its leaf's stack tells them apart.
        """
        if self.indices.ndim != 1 or len(self.view.dims) <= 2:
            return False
        leaf = self.view.leaf
        return leaf.state is None or self.view.whole_axis(self.dim()) in leaf.stack

    def picked(self, value: jax.Array) -> View:
        dim = self.dim()
        leaf = self.view.leaf.pick(self.view.whole_axis(dim), self.indices.reshape(()))
        return View(leaf, value, tuple(g for i, g in enumerate(self.view.dims) if i != dim))

    def facts(self) -> Facts:
        dim = self.dim()
        self.view.whole_axis(dim)
        others = _atoms(g for i, g in enumerate(self.view.dims) if i != dim)
        return _facts('lookup', self.view, [], list(self.view.dims[dim]), others)

    def run(self, state: Any, rule: Forward, transposed: bool) -> jax.Array:
        if transposed:
            raise Refused('it is looked up along its output axis')
        dim, params, out = self.dim(), self.eqn.params, self.eqn.outvars[0].aval
        kept = [i for i in range(len(self.view.dims)) if i != dim]
        rows, columns = list(self.view.dims[dim]), _sorted(_atoms(self.view.dims[i] for i in kept))
        tokens = [Free(i, size) for i, size in enumerate(self.indices.shape[:-1])]
        matrix = rearrange(
            self.view.value, self.view.dims, [*rows, *columns], [_size(rows), _size(columns)]
        )
        numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))

        def take(x: jax.Array, m: jax.Array) -> jax.Array:
            return lax.gather(
                m,
                x[:, None],
                numbers,
                (1, m.shape[1]),
                mode=params['mode'],
                fill_value=params['fill_value'],
                unique_indices=params['unique_indices'],
                indices_are_sorted=params['indices_are_sorted'],
            ).astype(out.dtype)

        def lowrank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
            return take(x, a) @ b.astype(out.dtype)

        leaves, key = state
        y = rule(
            leaves,
            Use(
                self.indices.reshape(-1),
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
        offsets = params['dimension_numbers'].offset_dims
        inside, outside = iter(kept), iter(tokens)
        order = _atoms(
            self.view.dims[next(inside)] if i in offsets else (next(outside),)
            for i in range(len(out.shape))
        )
        return rearrange(y, [tokens, columns], order, out.shape).astype(out.dtype)


@dataclasses.dataclass(frozen=True)
class Conv:
    """`conv_general_dilated` with a view as the kernel."""

    eqn: Any
    view: View
    x: jax.Array

    def _kernel_dims(self) -> tuple[int, list[int]]:
        spec = self.eqn.params['dimension_numbers'].rhs_spec
        return spec[0], list(spec[1:])

    def facts(self) -> Facts:
        if self.eqn.params['batch_group_count'] != 1:
            raise Refused('the convolution groups its batch')
        out, inner = self._kernel_dims()
        dims = self.view.dims
        return _facts('conv', self.view, [], _atoms(dims[i] for i in inner), list(dims[out]))

    def run(self, state: Any, rule: Forward, transposed: bool) -> jax.Array:
        out_dim, inner = self._kernel_dims()
        dims, params, out = self.view.dims, self.eqn.params, self.eqn.outvars[0].aval
        rows = _sorted(_atoms(dims[i] for i in inner))
        columns = _sorted(list(dims[out_dim]))
        if transposed or columns != list(dims[out_dim]):
            raise Refused('the convolution reads it in another orientation')
        groups = params['feature_group_count']
        matrix = rearrange(self.view.value, dims, [*rows, *columns], [_size(rows), _size(columns)])
        channel = params['dimension_numbers'].out_spec[1]

        def convolve(x: jax.Array, m: jax.Array) -> jax.Array:
            label = Columns(m.shape[1])
            order = _atoms((label,) if i == out_dim else dims[i] for i in range(len(dims)))
            shape = [
                m.shape[1] if i == out_dim else size for i, size in enumerate(self.view.value.shape)
            ]
            kernel = rearrange(m.astype(x.dtype), [rows, (label,)], order, shape)
            y = self.eqn.primitive.bind(x, kernel, **params)
            return jnp.moveaxis(y, channel, -1).reshape(-1, m.shape[1])

        def lowrank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
            rank = a.shape[1]
            inside = convolve(x, jnp.tile(a, (1, groups))).reshape(-1, groups, rank)
            grouped = b.astype(x.dtype).reshape(rank, groups, -1)
            return jnp.einsum('tgr,rgo->tgo', inside, grouped).reshape(len(inside), -1)

        leaves, key = state
        y = rule(
            leaves,
            Use(
                self.x,
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


def _atoms(groups: Any) -> list[Any]:
    return [label for group in groups for label in group]


def _sorted(atoms: list[Atom]) -> list[Atom]:
    """In the leaf's own order, which is the order of its matrix form."""
    return sorted(atoms, key=lambda atom: (atom.axis, -atom.stride))


def _size(labels: Any) -> int:
    return math.prod(label.size for label in labels)
