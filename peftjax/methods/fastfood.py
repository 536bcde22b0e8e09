"""Fastfood: a random projection of a short vector to a long one, without a matrix of it.

`P v` is made in blocks of `p` numbers, `p` the least power of two that holds `v`:
`H diag(g) Pi H diag(b) v`, with Hadamard's matrix `H`, random signs `b`, a random permutation `Pi`
and normal `g`. All are hashes of a seed, so that nothing is stored.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt32


def project(
    vector: Float[jax.Array, ' dimension'], size: int, seed: int
) -> Float32[jax.Array, ' {size}']:
    """`P vector: [size]` in float32; each row of `P` has length 1, up to what padding takes.

    `size` numbers are held a few times over and `O(size log p)` FLOPs spent, where the matrix would
    hold and cost `size d`.

    Args:
      vector: `[d]`.
      size: of the result.
      seed: of the projection, uint32.
    """
    width = 1 << max(0, math.ceil(math.log2(len(vector))))
    count = -(-size // width)
    padded = jnp.pad(vector.astype(jnp.float32), (0, width - len(vector)))
    # Arithmetic on indices, uint32, which wraps around.
    index = jax.lax.broadcasted_iota(jnp.uint32, (count, width), 1)
    block = jax.lax.broadcasted_iota(jnp.uint32, (count, width), 0)
    place = block * np.uint32(width) + index
    signs = 1.0 - 2.0 * (_hash(place, seed, 1) & 1).astype(jnp.float32)
    mixed = jnp.take_along_axis(
        hadamard(signs * padded[None]),
        _permuted(index, block, seed, width).astype(jnp.int32),
        axis=1,
    )
    normal = _normal(_hash(place, seed, 2))
    scale = jax.lax.rsqrt(width * (normal**2).sum(axis=1, keepdims=True))
    return (hadamard(normal * mixed) * scale).reshape(-1)[:size]


def hadamard(x: Float32[jax.Array, 'blocks block']) -> Float32[jax.Array, 'blocks block']:
    """`x H` for `x: [n, p]`, `p` a power of two and `H` of entries 1 and -1.

    `H` is the Kronecker product of small ones; products with those are faster than butterflies of
    sums: `2 n p c` FLOPs for each factor of size `c`, 32 or less.

    >>> hadamard(jnp.asarray([[1.0, 2.0]])).tolist()
    [[3.0, -1.0]]
    """
    count, width = x.shape
    left = width
    while left > 1:
        factor = min(left, 32)
        small = np.array([[1.0]], np.float32)
        while len(small) < factor:
            small = np.kron(small, np.array([[1.0, 1.0], [1.0, -1.0]], np.float32))
        # The factor's digit goes last; after all factors the digits are in order again.
        x = jnp.swapaxes(x.reshape(count, factor, width // factor), 1, 2) @ small
        left //= factor
    return x.reshape(count, width)


def _hash(
    x: UInt32[jax.Array, 'blocks block'], seed: int, stream: int
) -> UInt32[jax.Array, 'blocks block']:
    """Well-mixed uint32 of each number: the finaliser of MurmurHash3 over a keyed start."""
    x = x * np.uint32(0x9E3779B1) + np.uint32((seed * 0x85EBCA6B + stream * 0xC2B2AE35) % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 0x27D4EB2F), (15, 1)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x


def _normal(bits: UInt32[jax.Array, 'blocks block']) -> Float32[jax.Array, 'blocks block']:
    uniform = ((bits >> 8).astype(jnp.float32) + 0.5) * 2.0**-23 - 1.0
    return math.sqrt(2.0) * jax.lax.erf_inv(uniform)


def _permuted(
    index: UInt32[jax.Array, 'blocks {width}'],
    block: UInt32[jax.Array, 'blocks {width}'],
    seed: int,
    width: int,
) -> UInt32[jax.Array, 'blocks {width}']:
    """A permutation of `0 .. width - 1` for each block: steps on `log2(width)` bits, each of which
    can be undone."""
    mask, bits = np.uint32(width - 1), int(math.log2(width))
    x = index
    for step in range(3 if bits > 1 else 1):
        key = _hash(block, seed, 3 + step)
        x = (x * (key | 1) + (key >> 7)) & mask
        x = x ^ (x >> max(1, bits // 2))
    return x & mask
