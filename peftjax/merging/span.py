"""Rules whose result is a sum of the deltas with coefficients: factored deltas stay factored."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float32

from peftjax.core.layout import Layout
from peftjax.merging.changes import Change, Delta, Factored, Full, aligned, over, product
from peftjax.merging.factors import joined

Weights = Any
"""One number for all deltas, one for each (`[T]`), or `{leaf path: [T] or [*stack, T]}`; traced or
not."""
Per = Literal['tensor', 'model']


def weighted_sum(deltas: Sequence[Delta], weights: Weights) -> Delta:
    r"""Task arithmetic: `sum_i w_i D_i`.

    With one number for `weights` it is the published task arithmetic, `lambda sum_i D_i`; a
    negative number takes a skill away. Factored changes give factors of the summed rank, exactly:
    the factors stand side by side. Adding the `A`s and adding the `B`s would give another matrix.

    Args:
      deltas: the deltas to add.
      weights: a number, a number for each delta, or `{leaf path: [T]}`; for a leaf of stacked
        layers also `[*stack, T]`. They may be traced, and gradients reach them.

    Returns:
      A delta on every leaf that any of `deltas` changes.

    Raises:
      ValueError: the numbers of weights and of deltas differ, or deltas do not fit each other.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> delta = peftjax.merging.delta(mlp, tx, *tx.init(jax.random.key(0), mlp))
    >>> peftjax.merging.weighted_sum([delta, delta], [0.3, -0.3])
    {'hidden/kernel': Factored((4, 8), rank 4)}

    References:
      Ilharco et al., Editing Models with Task Arithmetic, 2022 (arXiv:2212.04089).
    """
    found = aligned(deltas)
    given = {
        path: weights_at(weights, path, len(deltas), changes[0].layout)
        for path, changes in found.items()
    }
    return {path: combined(changes, given[path]) for path, changes in found.items()}


def average(deltas: Sequence[Delta], weights: Weights | None = None) -> Delta:
    r"""The mean of the deltas, `sum_i w_i D_i / sum_i w_i`.

    Args:
      deltas: the deltas to average.
      weights: as `weighted_sum` takes them; all equal by default. Weights of `[*stack, T]` are
        divided by their sum in each layer.

    Raises:
      ValueError: as `weighted_sum`; or weights that sum to zero, unless they are traced.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tuned = jax.tree.map(lambda leaf: leaf + 1, mlp.params)
    >>> both = [peftjax.merging.delta_of(each, mlp) for each in (tuned, mlp.params)]
    >>> peftjax.merging.average(both)['out/bias'].values
    Array([[0.5, 0.5, 0.5]], dtype=float32)

    References:
      Wortsman et al., Model Soups, 2022 (arXiv:2203.05482), the uniform soup.
    """
    return {
        path: combined(changes, shares_at(weights, path, len(deltas), changes[0].layout))
        for path, changes in aligned(deltas).items()
    }


def shares_at(
    weights: Weights | None, path: str, count: int, layout: Layout | None = None
) -> Float32[jax.Array, '... T']:
    """The weights at a leaf divided by their sum, layer by layer; all equal if none are given.

    Raises:
      ValueError: as `weights_at`; or weights that sum to zero, unless they are traced.
    """
    given = 1.0 if weights is None else weights
    array = weights_at(given, path, count, layout)
    _check_sum(given[path] if isinstance(given, Mapping) else given, path)
    return array / array.sum(-1, keepdims=True)


def _check_sum(weights: Any, path: str) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(weights)):
        return
    each = np.atleast_1d(np.asarray(weights, np.float64))
    # 0.1 + 0.2 - 0.3 is not zero in floats, and the mean would consist of rounding errors.
    if not np.all(np.abs(each.sum(-1)) > 1e-6 * np.abs(each).sum(-1)):
        raise ValueError(
            f'the weights {each.tolist()} of a mean{_at(path)} sum to zero, or to no '
            'number, but a mean divides by the sum; write weighted_sum'
        )


def weights_at(
    weights: Weights, path: str, count: int, layout: Layout | None = None
) -> Float32[jax.Array, '... T']:
    """The weights of `count` deltas at a leaf: `[T]`, or `[*stack, T]` where a layout is given.

    Raises:
      ValueError: there are not `count` weights, or none for this leaf.
    """
    if isinstance(weights, Mapping):
        if path not in weights:
            raise ValueError(f'weights has nothing for {path!r}; write {{{path!r}: [...], ...}}')
        weights = weights[path]
    array = jnp.asarray(weights, jnp.float32)
    if array.ndim == 0:
        return jnp.full(count, array)
    stack = layout.stack_shape if layout is not None else ()
    if array.shape not in ((count,), (*stack, count)):
        layers = f', or an array of shape {(*stack, count)}' if stack else ''
        raise ValueError(
            f'there are {count} deltas and weights of shape {array.shape}{_at(path)}; write one '
            f'number, or one for each delta{layers}'
        )
    return array


def _at(path: str) -> str:
    return f' at {path!r}' if path else ''


def combined(changes: Sequence[Change], weights: jax.Array) -> Change:
    """`sum_i w_i D_i` at one leaf; weights are `[T]` or `[*stack, T]`."""
    scaled = [change.scaled(weights[..., i]) for i, change in enumerate(changes)]
    if all(isinstance(change, Factored) for change in scaled):
        return joined([change for change in scaled if isinstance(change, Factored)])
    return Full(sum_of([change.matrix() for change in scaled]), scaled[0].layout)


def weighted(
    weights: jax.Array, arrays: Sequence[jax.Array]
) -> Float32[jax.Array, '*stack in out']:
    """`sum_i w_i X_i` of arrays `[*stack, in, out]`; weights are `[T]` or `[*stack, T]`."""
    return sum_of([over(weights[..., i], each) * each for i, each in enumerate(arrays)])


def sum_of(arrays: Sequence[jax.Array]) -> jax.Array:
    """The sum of arrays, added one after another, so that only two are held at a time."""
    total = arrays[0]
    for each in arrays[1:]:
        total = total + each
    return total


def gram(changes: Sequence[Change]) -> Float32[jax.Array, '*stack T T']:
    """The inner products of the changes of a leaf, matrix by matrix, without forming products."""
    rows = [jnp.stack([_inner(one, other) for other in changes], -1) for one in changes]
    return jnp.stack(rows, -2)


def _inner(one: Change, other: Change) -> Float32[jax.Array, '*stack']:
    if isinstance(one, Factored) and isinstance(other, Factored):
        left = product(jnp.swapaxes(one.left, -1, -2), other.left)
        return (left * product(one.right, jnp.swapaxes(other.right, -1, -2))).sum((-1, -2))
    return (one.matrix() * other.matrix()).sum((-1, -2))


def spanned(
    deltas: Sequence[Delta], per: Per, coefficients: Callable[[jax.Array], jax.Array]
) -> Delta:
    """The sum with the coefficients `[..., T]` that a function computes from a Gram matrix.

    Raises:
      ValueError: `per` is neither `'tensor'` nor `'model'`.
    """
    check_per(per)
    found = aligned(deltas)
    grams = {path: gram(changes) for path, changes in found.items()}
    if per == 'tensor':
        return {path: combined(found[path], coefficients(grams[path])) for path in found}
    size = len(deltas)
    whole = coefficients(sum_of([each.reshape(-1, size, size).sum(0) for each in grams.values()]))
    return {path: combined(changes, whole) for path, changes in found.items()}


def check_per(per: Any) -> None:
    """Raises `ValueError` unless `per` is `'tensor'` or `'model'`."""
    if per not in ('tensor', 'model'):
        raise ValueError(f"per is {per!r}; write 'tensor' (each matrix separately) or 'model'")
