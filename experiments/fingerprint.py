"""A short name for the bits of a tree of arrays, wherever and however they lie."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp


def fingerprint(tree: Any) -> str:
    """Sixteen hex digits of the paths, shapes, dtypes and values of all leaves.

    Each leaf is summed up on its devices, in whole numbers, so that the order of a sum and with it
    the mesh do not matter; nothing is copied to the host. It tells bases apart by accident, not
    against an attacker.

    Example:
        >>> fingerprint({'a': jnp.ones(3)}) == fingerprint({'a': jnp.ones(3)})
        True
        >>> fingerprint({'a': jnp.ones(3)}) == fingerprint({'a': jnp.ones(3).at[1].set(1.0000001)})
        False
    """
    leaves, _ = jax.tree.flatten_with_path(tree)
    sums = jax.device_get([_sum(leaf) for _, leaf in leaves])
    digest = hashlib.sha256()
    for (path, leaf), pair in zip(leaves, sums, strict=True):
        name = f'{jax.tree_util.keystr(path)} {jnp.shape(leaf)} {leaf.dtype} {pair.tolist()}\n'
        digest.update(name.encode())
    return digest.hexdigest()[:16]


@jax.jit
def _sum(leaf: jax.Array) -> jax.Array:
    """Two sums, modulo 2**32, of every number's bits times one that its place decides."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype.kind in 'biu':
        bits = leaf.astype(jnp.uint32)
    else:
        width = min(leaf.dtype.itemsize, 4)
        bits = jax.lax.bitcast_convert_type(leaf, f'uint{8 * width}').astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = [(place * jnp.uint32(odd)) ^ (place >> 15) | jnp.uint32(1) for odd in _ODD]
    return jnp.stack([jnp.sum((bits ^ (bits >> 13)) * each, dtype=jnp.uint32) for each in mixed])


_ODD = 2654435761, 2246822519
