"""Fastfood: a random projection of a short vector to a long one, without storing a matrix.

`P v` is computed in blocks of `p` numbers, where `p` is the smallest power of two that is at least
the length of `v`: `H diag(g) Pi H diag(b) v`, with the Hadamard matrix `H`, random signs `b`, a
random permutation `Pi` and normal `g`. All are hashes of a seed, so that nothing is stored.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt32


@functools.partial(jax.jit, static_argnames='sizes')
def project(
    vector: Float[jax.Array, ' dimension'],
    sizes: tuple[int, ...],
    seeds: UInt32[jax.Array, ' projections'],
) -> list[Float32[jax.Array, ' _']]:
    """`P_i vector: [size_i]` in float32 for each of several projections, in one computation.

    Each row of `P_i` has length 1, except for the effect of padding. The memory is a few times the
    sum of the sizes, and the cost is `O(sum log p)` FLOPs. Matrices would take `sum d` of both.

    Args:
      vector: `[d]`.
      sizes: of the results.
      seeds: one for each projection.
    """
    width = 1 << max(0, math.ceil(math.log2(len(vector))))
    counts = [-(-size // width) for size in sizes]
    padded = jnp.pad(vector.astype(jnp.float32), (0, width - len(vector)))
    # Index arithmetic in uint32 wraps around. Blocks are numbered within a projection.
    ends = np.cumsum(counts)
    shape = (int(ends[-1]), width)
    row = jax.lax.broadcasted_iota(jnp.uint32, (shape[0], 1), 0)
    of = jnp.searchsorted(jnp.asarray(ends, jnp.uint32), row, side='right', method='compare_all')
    block = jnp.broadcast_to(row - jnp.asarray(ends - counts, jnp.uint32)[of], shape)
    seed = seeds[of]
    index = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
    place = block * np.uint32(width) + index
    signs = 1.0 - 2.0 * (hashed(place, seed, 1) & 1).astype(jnp.float32)
    mixed = jnp.take_along_axis(
        hadamard(signs * padded[None]),
        _permuted(index, block, seed, width).astype(jnp.int32),
        axis=1,
    )
    draws = normal(hashed(place, seed, 2))
    scale = jax.lax.rsqrt(width * (draws**2).sum(axis=1, keepdims=True))
    # For p > 1 a product comes last, which the compiler does not compute again for each part.
    whole = hadamard(draws * scale * mixed)
    parts = jnp.split(whole, ends[:-1])
    return [part.reshape(-1)[:size] for part, size in zip(parts, sizes, strict=True)]


def hadamard(x: Float32[jax.Array, 'blocks block']) -> Float32[jax.Array, 'blocks block']:
    """`x H` for `x: [n, p]`, where `p` is a power of two and `H` has the entries 1 and -1.

    `H` is the Kronecker product of small matrices. Products with small matrices are faster than
    butterflies of sums: `2 n p c` FLOPs for each factor of size `c`, 32 or less.

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


def hashed(
    x: UInt32[jax.Array, 'blocks block'], seed: UInt32[jax.Array, 'blocks 1'], stream: int
) -> UInt32[jax.Array, 'blocks block']:
    """A well-mixed uint32 for each number: it is keyed, then finalised as in MurmurHash3."""
    keyed = seed * np.uint32(0x85EBCA6B) + np.uint32((stream * 0xC2B2AE35) % 2**32)
    x = x * np.uint32(0x9E3779B1) + keyed
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 0x27D4EB2F), (15, 1)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x


def normal(bits: UInt32[jax.Array, 'blocks block']) -> Float32[jax.Array, 'blocks block']:
    """Normal numbers from uint32, all of them finite."""
    uniform = ((bits >> 8).astype(jnp.float32) + 0.5) * 2.0**-23 - 1.0
    # The largest numbers round to 1, where the inverse is infinite.
    return math.sqrt(2.0) * jax.lax.erf_inv(jnp.minimum(uniform, np.float32(1 - 2**-24)))


def _permuted(
    index: UInt32[jax.Array, 'blocks {width}'],
    block: UInt32[jax.Array, 'blocks {width}'],
    seed: UInt32[jax.Array, 'blocks 1'],
    width: int,
) -> UInt32[jax.Array, 'blocks {width}']:
    """A permutation of `0 .. width - 1` for each block, by invertible steps on its bits."""
    mask, bits = np.uint32(width - 1), int(math.log2(width))
    x = index
    for step in range(3 if bits > 1 else 1):
        key = hashed(block, seed, 3 + step)
        x = (x * (key | 1) + (key >> 7)) & mask
        x = x ^ (x >> max(1, bits // 2))
    return x & mask
