"""What schemes of blocks share."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from peftjax.core.shapes import HostArray


def nibbles(
    codes: UInt8[HostArray, 'rows bytes'], *, high_first: bool
) -> UInt8[jax.Array, 'rows 2*bytes']:
    """Two numbers of four bits in place of each byte, side by side: uint8 `[rows, 2 n]`.

    >>> nibbles(jnp.asarray([[0x12, 0xF0]], jnp.uint8), high_first=True).tolist()
    [[1, 2, 15, 0]]
    """
    high, low = codes >> 4, codes & 0xF
    pair = (high, low) if high_first else (low, high)
    return jnp.stack(pair, axis=-1).reshape(codes.shape[0], -1)


def spread(
    scale: Float[HostArray, 'rows blocks'], block: int
) -> Float[jax.Array, 'rows blocks*{block}']:
    """A scale for each of the `block` weights that share it."""
    return jnp.repeat(scale, block, axis=1)
