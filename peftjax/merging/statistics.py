"""Rules that weigh deltas by statistics of their data: Fisher values, moments of inputs."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.layout import Layout
from peftjax.merging.changes import (
    Change,
    Delta,
    Factored,
    Full,
    aligned,
    is_matrix,
    over,
    product,
)
from peftjax.merging.factors import joined
from peftjax.merging.span import Weights, combined, shares_at, sum_of


class Squares(Protocol):
    """Moments of the inputs of a matrix, as `peftjax.train.moments` gives them."""

    @property
    def squares(self) -> jax.Array:
        """`[*stack, in, in]`, the sum of `x^T x`."""
        ...

    @property
    def rows(self) -> jax.Array:
        """`[*stack]`, the number of inputs."""
        ...


def fisher(
    deltas: Sequence[Delta],
    values: Sequence[Any],
    *,
    weights: Weights | None = None,
    smooth: float = 0.0,
) -> Delta:
    r"""Fisher merging: `sum_i w_i F_i D_i / sum_i w_i F_i`, number by number.

    Since the base is common, this is the published average of the weights, `sum_i F_i W_i / sum_i
    F_i`. Where no task has information about a number, the average is taken.

    Args:
      deltas: the deltas to merge.
      values: for each delta the Fisher values of the tuned model, a tree like its parameters, as
        `peftjax.train.fisher` gives it.
      weights: of the tasks, as `weighted_sum` takes them; all equal by default.
      smooth: added to every Fisher value.

    Raises:
      ValueError: the numbers of `values` and of deltas differ, a leaf has no Fisher values, or
        weights are such as `average` refuses.

    >>> base = {'w': jnp.zeros(2)}
    >>> both = [peftjax.merging.delta_of({'w': jnp.asarray(w)}, base) for w in ([4., 1.], [0., 3.])]
    >>> values = [{'w': jnp.asarray([3.0, 0.0])}, {'w': jnp.asarray([1.0, 0.0])}]
    >>> peftjax.merging.fisher(both, values)['w'].values
    Array([[3., 2.]], dtype=float32)

    References:
      Matena and Raffel, Merging Models with Fisher-Weighted Averaging, 2021 (arXiv:2111.09832).
    """
    found = aligned(deltas)
    _check_count('values', values, deltas)
    by_path = [paths.flatten(each) for each in values]
    merged = {}
    for path, changes in found.items():
        given = shares_at(weights, path, len(deltas), changes[0].layout)
        each = [_fisher_at(path, changes[0], tree) + smooth for tree in by_path]
        shares = [over(given[..., i], value) for i, value in enumerate(each)]
        information = [share * value for share, value in zip(shares, each, strict=True)]
        total = sum_of(information)
        parts = [
            jnp.where(total != 0, value / jnp.where(total != 0, total, 1.0), share)
            * change.matrix()
            for value, share, change in zip(information, shares, changes, strict=True)
        ]
        merged[path] = Full(sum_of(parts), changes[0].layout)
    return merged


def _fisher_at(path: str, change: Change, values: Mapping[str, Any]) -> jax.Array:
    if path not in values:
        raise ValueError(
            f'values has nothing for {path!r}{paths.nearby(path, values)}; give the Fisher values '
            'of all leaves that change'
        )
    value = jnp.asarray(values[path], jnp.float32)
    if value.shape != change.layout.shape:
        raise ValueError(f'values has {value.shape} for {path!r} of shape {change.layout.shape}')
    return change.layout.to_matrix(value)


def _check_count(name: str, given: Sequence[Any], deltas: Sequence[Delta]) -> None:
    if len(given) != len(deltas):
        raise ValueError(f'{name} has {len(given)} entries for {len(deltas)} deltas; give one each')


def regmean(
    deltas: Sequence[Delta],
    moments: Sequence[Mapping[str, Squares]],
    *,
    off_diagonal: float = 0.9,
    weights: Weights | None = None,
) -> Delta:
    r"""RegMean: the weights whose outputs come closest to those of each model on its own inputs.

    `W` minimises `sum_i w_i |X_i W - X_i W_i|^2 / rows_i`, which gives the change `(sum_i G_i)^-1
    sum_i G_i D_i` with `G_i = w_i X_i^T X_i / rows_i`, its entries off the diagonal times
    `off_diagonal`. Leaves without moments (biases, norms, embeddings) are averaged. Factored
    changes stay factored; the inverted matrix is `[in, in]`.

    Args:
      deltas: the deltas to merge.
      moments: for each delta `{leaf path: moments}` of the inputs of the tuned model, as
        `peftjax.train.moments` gives them. All of them have the same paths.
      off_diagonal: `alpha`; below 1 it makes the sums invertible.
      weights: of the tasks, as `weighted_sum` takes them; all equal by default, however many
        inputs each has.

    Raises:
      ValueError: the numbers of `moments` and of deltas differ, their paths or shapes differ,
        `off_diagonal` is outside [0, 1], or weights are such as `average` refuses.

    >>> class One:
    ...     squares, rows = jnp.diag(jnp.asarray([3.0, 1.0])), jnp.float32(1)
    >>> class Other:
    ...     squares, rows = jnp.diag(jnp.asarray([1.0, 1.0])), jnp.float32(1)
    >>> from peftjax.core.layout import Layout
    >>> layout = Layout((2, 1), (), (0,), (1,))
    >>> both = [{'w': peftjax.merging.Full(jnp.asarray([[a], [b]]), layout)}
    ...         for a, b in ((4.0, 1.0), (0.0, 3.0))]
    >>> peftjax.merging.regmean(both, [{'w': One}, {'w': Other}])['w'].values.round(4)
    Array([[3.],
           [2.]], dtype=float32)

    References:
      Jin et al., Dataless Knowledge Fusion, 2022 (arXiv:2212.09849); the authors' code, which
      inverts the sum. Here each task has the same weight, however many inputs it has.
    """
    if not 0.0 <= off_diagonal <= 1.0:
        raise ValueError(f'off_diagonal is {off_diagonal}; write a number in [0, 1]')
    found = aligned(deltas)
    _check_count('moments', moments, deltas)
    merged = {}
    for path, changes in found.items():
        shares = shares_at(weights, path, len(deltas), changes[0].layout)
        known = [path in each for each in moments]
        if not any(known):
            merged[path] = combined(changes, shares)
            continue
        if not all(known) or not is_matrix(changes[0]):
            raise ValueError(
                f'moments has {path!r} for {sum(known)} of {len(deltas)} deltas, or it is read as '
                'a vector; give every delta moments of the same matrices, and give delta_of a Model'
            )
        grams = [_gram_at(path, each[path], off_diagonal, changes[0].layout) for each in moments]
        merged[path] = _solved(changes, grams, shares)
    return merged


def _gram_at(path: str, moments: Squares, off_diagonal: float, layout: Layout) -> jax.Array:
    squares = jnp.asarray(moments.squares, jnp.float32)
    expected = (*layout.stack_shape, layout.inputs, layout.inputs)
    if squares.shape != expected:
        raise ValueError(f'moments of {path!r} have shape {squares.shape}, but need {expected}')
    mean = squares / jnp.maximum(jnp.asarray(moments.rows, jnp.float32), 1.0)[..., None, None]
    identity = jnp.eye(mean.shape[-1])
    keep = identity + off_diagonal * (1 - identity)
    return mean * jnp.broadcast_to(keep, mean.shape)


def _solved(changes: Sequence[Change], grams: Sequence[jax.Array], given: jax.Array) -> Change:
    layout = changes[0].layout
    shares = [over(given[..., i], each) for i, each in enumerate(grams)]
    grams = [share * each for share, each in zip(shares, grams, strict=True)]
    diagonal = jnp.diagonal(sum_of(grams), axis1=-2, axis2=-1)
    # Adds a little of the average: an input that is always zero leaves a zero on the diagonal.
    ridge = jnp.where(diagonal > 0, 1e-6 * diagonal, 1.0)[..., None]
    ridge = ridge * jnp.broadcast_to(jnp.eye(layout.inputs), grams[0].shape)
    grams = [each + share * ridge for each, share in zip(grams, shares, strict=True)]
    if all(isinstance(change, Factored) for change in changes):
        whole = joined(
            [
                Factored(product(each, change.left), change.right, layout)
                for each, change in zip(grams, changes, strict=True)
                if isinstance(change, Factored)
            ]
        )
        return Factored(_solve(sum_of(grams), whole.left), whole.right, layout)
    sums = [product(each, change.matrix()) for each, change in zip(grams, changes, strict=True)]
    return Full(_solve(sum_of(grams), sum_of(sums)), layout)


def _solve(system: jax.Array, right: jax.Array) -> jax.Array:
    """Solves a symmetric system, scaled to a diagonal of ones since inputs differ in size."""
    scale = jax.lax.rsqrt(jnp.diagonal(system, axis1=-2, axis2=-1))[..., None]
    scaled = system * scale * jnp.swapaxes(scale, -1, -2)
    return scale * jnp.linalg.solve(scaled, scale * right)
