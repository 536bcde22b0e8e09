"""Election of signs: at each number, the mean of the deltas that have the elected sign."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from peftjax.merging.changes import Delta, aligned, over
from peftjax.merging.span import Weights, sum_of, weighted, weights_at
from peftjax.merging.trimming import Arrays, as_delta, matrices


class Found:
    """Deltas on the same leaves, each as arrays."""

    def __init__(self, deltas: Sequence[Delta]):
        changes = aligned(deltas)
        self.count = len(deltas)
        self.like = {path: each[0] for path, each in changes.items()}
        self.arrays = [
            matrices({path: each[i] for path, each in changes.items()}) for i in range(self.count)
        ]

    def weights(self, weights: Weights | None) -> dict[str, jax.Array]:
        """`{leaf path: [T] or [*stack, T]}`; ones if none are given."""
        given = 1.0 if weights is None else weights
        return {
            path: weights_at(given, path, self.count, change.layout)
            for path, change in self.like.items()
        }

    def shares(self, weights: Weights | None) -> dict[str, jax.Array]:
        """The weights of a sum; those of a mean if none are given."""
        return self.weights(1 / self.count if weights is None else weights)


def agreeing(
    arrays: Sequence[Arrays], weights: Mapping[str, jax.Array]
) -> dict[str, Float32[jax.Array, '*stack in out']]:
    """At each number, the weighted mean of the arrays that have the elected sign."""
    mass = {path: weighted(weights[path], [each[path] for each in arrays]) for path in weights}
    majority = jnp.sign(sum_of([jnp.sign(each).sum() for each in mass.values()]))
    return {path: _mean_of_sign(path, arrays, weights[path], mass[path], majority) for path in mass}


def _mean_of_sign(
    path: str, arrays: Sequence[Arrays], weights: jax.Array, mass: jax.Array, majority: jax.Array
) -> jax.Array:
    sign = jnp.where(mass == 0, majority, jnp.sign(mass))
    total, divisor = jnp.zeros_like(mass), jnp.zeros_like(mass)
    for i, each in enumerate(arrays):
        weight = over(weights[..., i], mass)
        agrees = weight * each[path] * sign > 0
        total += jnp.where(agrees, weight * each[path], 0.0)
        divisor += jnp.where(agrees, jnp.abs(weight), 0.0)
    return total / jnp.where(divisor == 0, 1.0, divisor)


def scaled(arrays: Arrays, scale: Any) -> dict[str, jax.Array]:
    return {path: array * over(scale, array) for path, array in arrays.items()}


def added(found: Found, arrays: Sequence[Arrays], weights: Weights | None, elect: bool) -> Delta:
    if elect:
        return as_delta(agreeing(arrays, found.weights(weights)), found.like)
    shares = found.shares(weights)
    total = {
        path: weighted(share, [each[path] for each in arrays]) for path, share in shares.items()
    }
    return as_delta(total, found.like)
