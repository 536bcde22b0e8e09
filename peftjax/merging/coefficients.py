"""Coefficients by search: AdaMerging by gradients, the greedy soup by a score."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float32

from peftjax.merging.changes import Delta, aligned
from peftjax.merging.deltas import apply_delta
from peftjax.merging.span import Per, average, check_per, sum_of, weighted_sum


def entropy(logits: Float32[jax.Array, '... C']) -> Float32[jax.Array, '']:
    """The mean entropy of predicted distributions, in nats.

    >>> float(peftjax.merging.entropy(jnp.zeros((3, 4)))) == float(jnp.log(4.0))
    True
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    return -(jnp.exp(logs) * logs).sum(-1).mean()


def adamerging(
    logits: Callable[[Any, Any], Any],
    params: Any,
    deltas: Sequence[Delta],
    batches: Iterable[Any],
    *,
    start: Any = 0.3,
    per: Per = 'tensor',
    optimizer: optax.GradientTransformation | None = None,
) -> Any:
    r"""AdaMerging: the weights of a sum that make predictions on unlabelled data certain.

    Minimises the entropy of `logits(params + sum_i lambda_i D_i, batch)` over the `lambda_i`, by
    gradients through the merge, with one step for each batch.

    Args:
      logits: a function of `params` and `batch` that returns an array `[..., C]`, or a tree with
        one array for each task; the entropies of the tasks are added. It must put heads that were
        split off into `params`.
      params: the parameters of the base.
      deltas: the deltas to merge.
      batches: unlabelled inputs, one batch for each step.
      start: the initial value of every `lambda`, or one value for each delta.
      per: `'model'` for one `lambda` for each delta; `'tensor'` for one for each delta and leaf,
        and for each layer of a stacked leaf.
      optimizer: Adam with the rate 1e-3 by default.

    Returns:
      Weights for `weighted_sum`, and for every rule that takes the same weights: `[T]`, or `{leaf
      path: [*stack, T]}`.

    Raises:
      ValueError: no batches, or deltas that do not fit each other.

    >>> base = {'w': jnp.zeros((1, 2))}
    >>> deltas = [peftjax.merging.delta_of({'w': jnp.asarray([[first, 0.0]])}, base)
    ...           for first in (2.0, -1.0)]
    >>> found = peftjax.merging.adamerging(
    ...     lambda params, x: x @ params['w'], base, deltas, [jnp.ones((4, 1))] * 9, per='model')
    >>> bool(found[0] > 0.3 and found[1] < 0.3)  # Both make the first class more certain.
    True

    References:
      Yang et al., AdaMerging, 2023 (arXiv:2310.02575).
    """
    check_per(per)
    tuned = optax.adam(1e-3) if optimizer is None else optimizer
    found, count = aligned(deltas), len(deltas)
    first = jnp.broadcast_to(jnp.asarray(start, jnp.float32), (count,))
    weights: Any = first
    if per == 'tensor':
        weights = {
            path: jnp.broadcast_to(first, (*changes[0].layout.stack_shape, count))
            for path, changes in found.items()
        }
    state = tuned.init(weights)

    def loss(weights: Any, params: Any, deltas: Any, batch: Any) -> Float32[jax.Array, '']:
        merged = apply_delta(params, weighted_sum(deltas, weights))
        return sum_of([entropy(each) for each in jax.tree.leaves(logits(merged, batch))])

    @jax.jit
    def step(weights: Any, state: Any, params: Any, deltas: Any, batch: Any) -> tuple[Any, Any]:
        slopes = jax.grad(loss)(weights, params, deltas, batch)
        with jax.numpy_dtype_promotion('standard'):  # Optax raises floats to whole numbers.
            updates, state = tuned.update(slopes, state, weights)
        return optax.apply_updates(weights, updates), state

    empty = True
    for batch in batches:
        weights, state = step(weights, state, params, list(deltas), batch)
        empty = False
    if empty:
        raise ValueError('batches is empty; give one batch for each step')
    return weights


class Soup(NamedTuple):
    """What `greedy_soup` found.

    Attributes:
      delta: the mean of the chosen deltas.
      chosen: their indices among the deltas, in the order in which they were added.
      score: the score of the mean.
    """

    delta: Delta
    chosen: tuple[int, ...]
    score: float


def greedy_soup(deltas: Sequence[Delta], score: Callable[[Delta], float]) -> Soup:
    """Averages deltas greedily: the best one, then each other that does not lower the score.

    Args:
      deltas: of one task, by different seeds or hyperparameters.
      score: gives the score of a delta on held-out data; higher is better.

    Raises:
      ValueError: there are no deltas, or a score is NaN, of a delta alone or of a mean.

    >>> base = {'w': jnp.zeros(1)}
    >>> deltas = [peftjax.merging.delta_of({'w': jnp.asarray([w])}, base) for w in (3.0, 0.5, -1.0)]
    >>> soup = peftjax.merging.greedy_soup(deltas, lambda delta: -abs(delta['w'].values.item() - 1))
    >>> soup.chosen, soup.score
    ((1,), -0.5)

    References:
      Wortsman et al., Model Soups, 2022 (arXiv:2203.05482), the greedy soup.
    """
    aligned(deltas)
    alone = [_scored(score, deltas, (i,)) for i in range(len(deltas))]
    order = sorted(range(len(deltas)), key=lambda i: -alone[i])
    chosen, best = [order[0]], alone[order[0]]
    for i in order[1:]:
        tried = _scored(score, deltas, (*chosen, i))
        if tried >= best:
            chosen, best = [*chosen, i], tried
    return Soup(average([deltas[i] for i in chosen]), tuple(chosen), best)


def _scored(
    score: Callable[[Delta], float], deltas: Sequence[Delta], places: tuple[int, ...]
) -> float:
    """The score of a delta, or of the mean of several."""
    alone = len(places) == 1
    found = float(score(deltas[places[0]] if alone else average([deltas[i] for i in places])))
    if math.isnan(found):
        what = f'delta {places[0]}' if alone else f'the mean of the deltas {list(places)}'
        raise ValueError(
            f'the score of {what} is NaN, so that the deltas cannot be ordered by their scores'
        )
    return found
