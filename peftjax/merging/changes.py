"""The changes that a fine-tuning made, as values: one for each leaf, factored or in full."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from peftjax.core import paths
from peftjax.core.layout import Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """The change `L R` of a leaf, by its factors; the product is formed only where it is needed.

    Attributes:
      left: `[*stack, in, r]`, with the method's scale in it. right: `[*stack, r, out]`.
      layout: of the leaf.
    """

    left: Float32[jax.Array, '*stack in rank']
    right: Float32[jax.Array, '*stack rank out']
    layout: Layout = dataclasses.field(metadata={'static': True})

    @property
    def rank(self) -> int:
        return self.left.shape[-1]

    def matrix(self) -> Float32[jax.Array, '*stack in out']:
        """The change as a stack of matrices."""
        return product(self.left, self.right)

    def scaled(self, weight: Any) -> 'Factored':
        """The change times `weight`, a number or `[*stack]`."""
        return dataclasses.replace(self, left=self.left * over(weight, self.left))

    def __repr__(self) -> str:
        # In a tree of shardings, say, the leaves have no shape.
        rank = self.rank if hasattr(self.left, 'shape') else '?'
        return f'Factored({self.layout.shape}, rank {rank})'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Full:
    """The change of a leaf in full.

    Attributes:
      values: `[*stack, in, out]`; of a vector (bias, scale) `[*stack, 1, n]`.
      layout: of the leaf; without rows for a vector.
    """

    values: Float32[jax.Array, '*stack in out']
    layout: Layout = dataclasses.field(metadata={'static': True})

    def matrix(self) -> Float32[jax.Array, '*stack in out']:
        """The change as a stack of matrices."""
        return self.values

    def scaled(self, weight: Any) -> 'Full':
        """The change times `weight`, a number or `[*stack]`."""
        return dataclasses.replace(self, values=self.values * over(weight, self.values))

    def __repr__(self) -> str:
        return f'Full({self.layout.shape})'


Change = Factored | Full
"""The change of one leaf."""
Delta = Mapping[str, Change]
"""`{leaf path: change}`: what a fine-tuning added to the parameters. A pytree, in float32."""


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """A product of matrices in full float32, even on hardware that defaults to lower precision."""
    return jnp.matmul(left, right, precision='highest')


def over(weight: Any, array: jax.Array) -> jax.Array:
    """`weight`, a number or `[*stack]`, with axes of size one for the matrices of `array`."""
    weight = jnp.asarray(weight, array.dtype)
    return weight.reshape(weight.shape + (1,) * (array.ndim - weight.ndim))


def is_change(node: Any) -> bool:
    return isinstance(node, Factored | Full)


def is_matrix(change: Change) -> bool:
    """Whether a matrix of the model changes, and not a vector."""
    return bool(change.layout.rows)


def vector_layout(shape: tuple[int, ...], stack: tuple[int, ...] = ()) -> Layout:
    """The layout of a leaf that is no matrix: a vector of all its axes but the stack's."""
    return Layout(shape, stack, (), tuple(axis for axis in range(len(shape)) if axis not in stack))


def dense(delta: Delta) -> dict[str, Float32[jax.Array, '...']]:
    """The change of each leaf as an array of the leaf's own shape.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> delta = peftjax.merging.delta(mlp, tx, *tx.init(jax.random.key(0), mlp))
    >>> delta
    {'hidden/kernel': Factored((4, 8), rank 2)}
    >>> peftjax.merging.dense(delta)['hidden/kernel'].shape
    (4, 8)
    """
    check_delta(delta)
    return {path: change.layout.from_matrix(change.matrix()) for path, change in delta.items()}


def check_delta(delta: Any) -> None:
    """Raises `TypeError` unless `delta` is a delta."""
    if not isinstance(delta, Mapping) or not all(map(is_change, delta.values())):
        raise TypeError(
            f'a delta is a dict of changes by leaf path, found a {type(delta).__name__}; write '
            'peftjax.merging.delta(model, transform, adapter, frozen), or delta_of(params, model)'
        )


def aligned(deltas: Sequence[Delta]) -> dict[str, list[Change]]:
    """For each leaf that any of `deltas` changes, one change from each delta.

    The change is zero where a delta does not have the leaf.

    Raises:
      TypeError: `deltas` is not a sequence of deltas.
      ValueError: there are none, or two have changes of different shapes at one path.
    """
    if isinstance(deltas, Mapping) or not isinstance(deltas, Sequence):
        raise TypeError(f'deltas is a {type(deltas).__name__}; write a list, [first, second]')
    if not deltas:
        raise ValueError('deltas is empty; write a list of at least one delta')
    for each in deltas:
        check_delta(each)
    layouts: dict[str, Layout] = {}
    for each in deltas:
        for path, change in each.items():
            _check_alike(path, layouts.setdefault(path, change.layout), change.layout)
    return {
        path: [each[path] if path in each else _nothing(layout) for each in deltas]
        for path, layout in layouts.items()
    }


def _check_alike(path: str, first: Layout, second: Layout) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f'the deltas have changes of shapes {first.shape} and {second.shape} at {path!r}, '
            'which no rule merges. Heads of different tasks stay apart: write '
            f'matching, rest = peftjax.merging.split(delta, {path!r}), and merge the rests'
        )
    if first != second:
        raise ValueError(
            f'the deltas read {path!r} as matrices in different ways, {first} and {second}. Make '
            'all of them with the same model: delta_of(params, model)'
        )


def _nothing(layout: Layout) -> Factored:
    left = jnp.zeros((*layout.stack_shape, layout.inputs, 0), jnp.float32)
    return Factored(left, jnp.zeros((*layout.stack_shape, 0, layout.outputs), jnp.float32), layout)


def split(delta: Delta, targets: paths.Targets) -> tuple[Delta, Delta]:
    """The changes of the leaves whose path matches, and the others.

    Heads of different tasks have the same path but a different meaning, and must not be merged:
    split them off, merge the rest, and add the head of one task again with `apply_delta`.

    Args:
      delta: what to split.
      targets: which leaves, by `/`-joined path, as `peftjax.targets` says.

    Raises:
      TargetError: a pattern matches no leaf of the delta.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> delta = peftjax.merging.delta_of(mlp.params, mlp)
    >>> head, body = peftjax.merging.split(delta, r'out/.*')
    >>> sorted(head), sorted(body)
    (['out/bias', 'out/kernel'], ['hidden/bias', 'hidden/kernel'])
    """
    check_delta(delta)
    chosen = set(paths.choose_names(targets, delta, 'leaf of the delta'))
    return (
        {path: change for path, change in delta.items() if path in chosen},
        {path: change for path, change in delta.items() if path not in chosen},
    )
