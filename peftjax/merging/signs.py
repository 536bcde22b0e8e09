"""Rules that act on every number separately: TIES, DARE, DELLA, breadcrumbs, SCE."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float32, PRNGKeyArray

from peftjax.merging.changes import Delta
from peftjax.merging.election import Found, added, agreeing, scaled
from peftjax.merging.span import Per, Weights
from peftjax.merging.trimming import (
    as_delta,
    check_density,
    check_spread,
    drop,
    drop_by_rank,
    keep_largest,
    middle,
)


def ties(
    deltas: Sequence[Delta],
    *,
    density: float = 0.2,
    weights: Weights | None = None,
    scale: float = 1.0,
    trim: Per = 'model',
) -> Delta:
    r"""TIES: trim each delta, elect a sign for each number, average those who agree.

    `D_i` keeps its share `density` of the largest entries. The elected sign of an entry is the sign
    of `sum_i w_i D_i`, or where this sum is zero, the sign that most entries of the model have. The
    result is `scale sum w_i D_i / sum w_i` over the deltas whose entry is not zero and has the
    elected sign. The full change of every leaf is formed, except in Core Space.

    Args:
      deltas: the deltas to merge.
      density: the share of each delta that stays, in (0, 1].
      weights: as `weighted_sum` takes them; all equal by default, as in the paper.
      scale: `lambda`.
      trim: `'model'`: a threshold for each delta over all its entries, as the authors' code has.
        `'tensor'`: a threshold for each matrix, as peft and mergekit have.

    Returns:
      A delta of full changes.

    Raises:
      ValueError: a density outside (0, 1], or deltas or weights that do not fit each other.

    >>> base = {'w': jnp.zeros(3)}
    >>> first, second = ({'w': jnp.asarray(w)} for w in ([3.0, 1.0, 0.1], [1.0, -2.0, 0.2]))
    >>> both = [peftjax.merging.delta_of(each, base) for each in (first, second)]
    >>> peftjax.merging.ties(both, density=2 / 3)['w'].values
    Array([[ 2., -2.,  0.]], dtype=float32)

    References:
      Yadav et al., TIES-Merging, 2023 (arXiv:2306.01708). The threshold of the authors' code is one
      place lower, so that `k + 1` entries stay. peft trims each tensor, elects on deltas without
      weights, and divides by the count of those that agree; mergekit trims each tensor, elects on
      weighted deltas, and divides by their weights, as here. The two differ by a factor of two for
      weights (0.5, 0.5).
    """
    check_density(density)
    found = Found(deltas)
    kept = [keep_largest(each, density, trim) for each in found.arrays]
    return as_delta(scaled(agreeing(kept, found.weights(weights)), scale), found.like)


def dare(
    deltas: Sequence[Delta],
    key: PRNGKeyArray,
    *,
    density: float,
    weights: Weights | None = None,
    elect: bool = False,
) -> Delta:
    r"""DARE: thin out each delta at random, rescale what stays, and add.

    `D_i' = m_i D_i / p` with `m_i ~ Bernoulli(p)`, `p = density`; the result is `sum_i w_i D_i'`,
    or with `elect` the mean of the entries that have the elected sign, as in `ties`.

    Args:
      deltas: the deltas to merge.
      key: split into one for each of `deltas`, in their order.
      density: the probability to stay, in (0, 1].
      weights: as `weighted_sum` takes them; a mean by default.
      elect: elect signs (mergekit's `dare_ties`).

    Raises:
      ValueError: a density outside (0, 1], or deltas or weights that do not fit each other.

    >>> delta = peftjax.merging.delta_of({'w': jnp.ones(1000)}, {'w': jnp.zeros(1000)})
    >>> thin = peftjax.merging.dare([delta, delta], jax.random.key(0), density=0.5)
    >>> sorted({float(each) for each in thin['w'].values[0]})
    [0.0, 1.0, 2.0]

    References:
      Yu et al., Language Models are Super Mario, 2023 (arXiv:2311.03099). peft draws from torch's
      global generator; mergekit rescales to the L1 norm before thinning, and not by `1 / p`.
    """
    check_density(density)
    found = Found(deltas)
    keys = jax.random.split(key, found.count)
    thin = [drop(each, arrays, density) for each, arrays in zip(keys, found.arrays, strict=True)]
    return added(found, thin, weights, elect)


def della(
    deltas: Sequence[Delta],
    key: PRNGKeyArray,
    *,
    density: float,
    epsilon: float = 0.15,
    weights: Weights | None = None,
    elect: bool = True,
) -> Delta:
    r"""DELLA: larger entries are likelier to stay; then elect signs and average those who agree.

    Among the `n` entries of an output's column, the one of rank `j` by magnitude (0 the smallest)
    stays with probability `p = density - epsilon + 2 epsilon j / (n - 1)`, and is divided by `p`.
    The entries of a vector, or of a matrix of one row, are ranked together; a single entry has `p =
    density`.

    Args:
      deltas: the deltas to merge.
      key: split into one for each of `deltas`, in their order.
      density: the mean probability to stay.
      epsilon: how far probabilities differ from `density`; `density +- epsilon` is in (0, 1].
      weights: as `weighted_sum` takes them.
      elect: elect signs, as in `ties`; if False, add as `dare` does.

    Raises:
      ValueError: probabilities outside (0, 1], or deltas or weights that do not fit each other.

    >>> delta = peftjax.merging.delta_of({'w': jnp.ones(4)}, {'w': jnp.zeros(4)})
    >>> key = jax.random.key(0)
    >>> merged = peftjax.merging.della([delta, delta], key, density=0.7)
    >>> merged['w'].values.shape
    (1, 4)

    References:
      Deep et al., DELLA-Merging, 2024 (arXiv:2406.11617). mergekit's code ranks the inputs of an
      output, as here, but rescales to the tensor's L1 norm and not entry by entry.
    """
    check_spread(density, epsilon)
    found = Found(deltas)
    keys = jax.random.split(key, found.count)
    thin = [
        drop_by_rank(each, arrays, density, epsilon)
        for each, arrays in zip(keys, found.arrays, strict=True)
    ]
    return added(found, thin, weights, elect)


def breadcrumbs(
    deltas: Sequence[Delta],
    *,
    density: float = 0.85,
    gamma: float = 0.01,
    weights: Weights | None = None,
    elect: bool = False,
) -> Delta:
    r"""Model breadcrumbs: drop the largest and the smallest entries of each matrix, and add.

    Of the `n` entries of a matrix the `round(gamma n)` largest go; of the others the `round(density
    n)` largest stay, and any that equal one of these. A matrix of few entries loses none of its
    largest, and keeps at least one entry.

    Args:
      deltas: the deltas to merge.
      density: the share that stays, in (0, 1].
      gamma: the share of the largest entries that goes, in [0, 1).
      weights: as `weighted_sum` takes them; a mean by default.
      elect: elect signs, as in `ties`.

    Raises:
      ValueError: a share outside its range, or deltas or weights that do not fit each other.

    >>> base, tuned = {'w': jnp.zeros(4)}, {'w': jnp.asarray([8.0, -4.0, 2.0, 1.0])}
    >>> delta = peftjax.merging.delta_of(tuned, base)
    >>> peftjax.merging.breadcrumbs([delta], density=0.5, gamma=0.25)['w'].values
    Array([[ 0., -4.,  2.,  0.]], dtype=float32)

    References:
      Davari and Belilovsky, Model Breadcrumbs, 2023 (arXiv:2312.06795). mergekit's code
      returns zeros for a tensor of fewer than `1 / gamma` entries (its slice ends at `-0`).
    """
    check_density(density)
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f'gamma is {gamma}; write the share of largest entries to drop, in [0, 1)')
    found = Found(deltas)
    return added(found, [middle(each, density, gamma) for each in found.arrays], weights, elect)


def sce(deltas: Sequence[Delta], *, density: float = 1.0) -> Delta:
    r"""SCE: select by variance, calculate a coefficient for each matrix, erase minorities.

    In each matrix, the share `density` of entries with the largest variance over the deltas stays.
    The coefficient of a delta is its share of the sum of squares there, `c_i = |D_i|^2 / sum_j
    |D_j|^2`. The result at a number is `sum c_i D_i / sum c_i` over the deltas that have the sign
    of `sum_j D_j`.

    Args:
      deltas: the deltas to merge.
      density: the share of entries that stays, in (0, 1].

    Raises:
      ValueError: a density outside (0, 1], or deltas that do not fit each other.

    >>> base = {'w': jnp.zeros(2)}
    >>> both = [peftjax.merging.delta_of({'w': jnp.asarray(w)}, base)
    ...         for w in ([3.0, 1.0], [1.0, -2.0])]
    >>> peftjax.merging.sce(both)['w'].values.round(1)  # (10 * 3 + 5 * 1) / 15, and -2
    Array([[ 2.3, -2. ]], dtype=float32)

    References:
      Wan et al., FuseChat, 2024 (arXiv:2408.07990), the method SCE. mergekit's code counts the
      share of entries whose variance is not zero.
    """
    check_density(density)
    found = Found(deltas)
    merged = {}
    for path in found.like:
        stacked = jnp.stack([each[path] for each in found.arrays])
        merged[path] = _selected(stacked, density)
    return as_delta(merged, found.like)


def _selected(
    stacked: Float32[jax.Array, '...'], density: float
) -> Float32[jax.Array, '*stack in out']:
    if density < 1.0 and len(stacked) > 1:
        variance = jnp.var(stacked, axis=0)
        inside = keep_largest({'': variance}, density, 'tensor')[''] > 0
        stacked = jnp.where(inside[None], stacked, 0.0)
    squares = jnp.square(stacked).sum((-2, -1), keepdims=True)
    mass = stacked.sum(0)
    agrees = stacked * jnp.where(mass >= 0, 1.0, -1.0)[None] > 0
    coefficients = jnp.where(agrees, squares, 0.0)
    divisor = coefficients.sum(0)
    return (coefficients * stacked).sum(0) / jnp.where(divisor == 0, 1.0, divisor)
