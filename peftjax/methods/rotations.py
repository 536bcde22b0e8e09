"""Rotations of blocks of features, by Cayley's transform of skew-symmetric matrices."""

import jax
import jax.numpy as jnp


def skew(triangle: jax.Array, size: int) -> jax.Array:
    """Skew-symmetric `[n, b, b]` in float32 from upper triangles `[n, b (b - 1) / 2]`."""
    rows, columns = jnp.triu_indices(size, 1)
    upper = jnp.zeros((len(triangle), size, size), jnp.float32)
    upper = upper.at[:, rows, columns].set(triangle.astype(jnp.float32))
    return upper - jnp.swapaxes(upper, 1, 2)


def cayley(skewed: jax.Array, terms: int | None = None) -> jax.Array:
    """`(I - Q)(I + Q)^-1` of each `Q` in `[n, b, b]`.

    Args:
      skewed: skew-symmetric matrices.
      terms: so many terms of the Neumann series `(I - Q)(I - Q + Q^2 - ...)` in place of the
        inverse: `I - 2 Q + 2 Q^2 - ... + (-Q)^(terms - 1)`, orthogonal up to that power.
    """
    eye = jnp.broadcast_to(jnp.eye(skewed.shape[-1]), skewed.shape)
    if terms is None:
        return jnp.linalg.solve(eye + skewed, eye - skewed)  # The two factors commute.
    result, power = eye, eye
    for number in range(1, terms):
        power = -power @ skewed
        result = result + (1 if number == terms - 1 else 2) * power
    return result


def turn(x: jax.Array, rotations: jax.Array) -> jax.Array:
    """`x: [T, features]` times the block-diagonal matrix of `rotations: [n, b, b]`.

    One rotation (`n = 1`) turns every block.
    """
    size = rotations.shape[-1]
    blocks = x.reshape(len(x), -1, size)
    every = jnp.broadcast_to(rotations, (blocks.shape[1], size, size))
    return jnp.einsum('tni,nij->tnj', blocks, every).reshape(x.shape)
