"""T5's buckets of the distances between tokens."""

import math

import jax
import jax.numpy as jnp


def relative_buckets(
    ahead: jax.Array, buckets: int, furthest: int, *, both_ways: bool
) -> jax.Array:
    """The bucket of each distance from a query to a key: int32, of the shape of `ahead`.

    Each near distance has its own bucket; further distances share buckets on a logarithmic scale up
    to `furthest`, and all beyond share the last one. With both_ways, half of the buckets are for
    keys after the query.

    Example:
        >>> relative_buckets(jnp.array([-3, -2, -1, 0]), 4, 8, both_ways=False)
        Array([2, 2, 1, 0], dtype=int32)

    Source: Raffel et al. 2019, https://arxiv.org/abs/1910.10683, section 2.1.
    """
    offset = jnp.zeros_like(ahead)
    if both_ways:
        buckets //= 2
        offset = jnp.where(ahead > 0, buckets, 0)
        distance = jnp.abs(ahead)
    else:
        distance = jnp.maximum(-ahead, 0)
    exact = buckets // 2
    scale = (buckets - exact) / math.log(furthest / exact)
    log = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) * scale
    far = jnp.minimum(exact + log.astype(jnp.int32), buckets - 1)
    return (offset + jnp.where(distance < exact, distance, far)).astype(jnp.int32)
