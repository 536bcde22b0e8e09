"""Rotations of blocks of features, by the Cayley transform of skew-symmetric matrices."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int


def skew(
    triangle: Float[jax.Array, 'blocks {size}*({size}-1)//2'], size: int
) -> Float32[jax.Array, 'blocks {size} {size}']:
    """Skew-symmetric `[n, b, b]` in float32 from upper triangles `[n, b (b - 1) / 2]`."""
    rows, columns = jnp.triu_indices(size, 1)
    upper = jnp.zeros((len(triangle), size, size), jnp.float32)
    upper = upper.at[:, rows, columns].set(triangle.astype(jnp.float32))
    return upper - jnp.swapaxes(upper, 1, 2)


def cayley(
    skewed: Float32[jax.Array, 'blocks block block'], terms: int | None = None
) -> Float32[jax.Array, 'blocks block block']:
    """`(I - Q)(I + Q)^-1` of each `Q` in `[n, b, b]`.

    Args:
      skewed: skew-symmetric matrices.
      terms: the number of terms of the Neumann series `(I - Q)(I - Q + Q^2 - ...)` in place of the
        inverse: `I - 2 Q + 2 Q^2 - ... + (-Q)^(terms - 1)`, orthogonal up to terms of that power.
    """
    if terms is None:
        return _cayley(skewed)
    result, power = _eyes(skewed) - 2 * skewed, -skewed
    for number in range(2, terms):
        power = -power @ skewed
        result = result + (1 if number == terms - 1 else 2) * power
    return result


def _eyes(like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(like.shape[-1], dtype=like.dtype), like.shape)


@jax.custom_jvp
def _cayley(
    skewed: Float32[jax.Array, 'blocks block block'],
) -> Float32[jax.Array, 'blocks block block']:
    # R = (2 I - (I + Q)) (I + Q)^-1 = 2 (I + Q)^-1 - I
    eyes = _eyes(skewed)
    return 2.0 * _inverse(eyes + skewed) - eyes


@_cayley.defjvp
def _cayley_jvp(
    primals: tuple[Float32[jax.Array, 'blocks block block']],
    tangents: tuple[Float32[jax.Array, 'blocks block block']],
) -> tuple[Float32[jax.Array, 'blocks block block'], Float32[jax.Array, 'blocks block block']]:
    rotation = _cayley(*primals)
    twice_inverse = rotation + _eyes(rotation)
    return rotation, -0.5 * twice_inverse @ tangents[0] @ twice_inverse


def _inverse(
    matrix: Float32[jax.Array, 'blocks block block'],
) -> Float32[jax.Array, 'blocks block block']:
    """Gauss-Jordan elimination in place, on all of `[n, b, b]` at once.

    It needs no pivoting: the symmetric part of `I + Q` is positive definite, and it stays so after
    each step. LAPACK would work too, but many of its batched calls at once can lock up the thread
    pool of XLA's CPU backend (seen with jax 0.10.2 and two threads, 2026-11-25).
    """
    size = matrix.shape[-1]

    def step(
        k: Int[jax.Array, ''], left: Float32[jax.Array, 'blocks block block']
    ) -> Float32[jax.Array, 'blocks block block']:
        here = jnp.arange(size) == k
        across, down = here[None, None, :], here[None, :, None]
        row = jax.lax.dynamic_index_in_dim(left, k, axis=-2, keepdims=True)
        column = jax.lax.dynamic_index_in_dim(left, k, axis=-1, keepdims=True)
        pivot = jax.lax.dynamic_index_in_dim(row, k, axis=-1, keepdims=True)
        row = jnp.where(across, 1.0, row) / pivot
        column = jnp.where(down, 0.0, column)
        rest = jnp.where(across, 0.0, left) - column * row
        return jnp.where(down, row, rest)

    return jax.lax.fori_loop(0, size, step, matrix)


def turn(
    x: Float[jax.Array, 'T in'], rotations: Float[jax.Array, 'blocks block block']
) -> Float[jax.Array, 'T in']:
    """`x: [T, features]` times the block-diagonal matrix of `rotations: [n, b, b]`.

    A single rotation (`n = 1`) turns every block.
    """
    size = rotations.shape[-1]
    blocks = x.reshape(len(x), -1, size)
    every = jnp.broadcast_to(rotations, (blocks.shape[1], size, size))
    return jnp.einsum('tni,nij->tnj', blocks, every).reshape(x.shape)
