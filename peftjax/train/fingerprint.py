"""A fingerprint of the bits of a tree of arrays, the same on all devices and shardings."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

_ODD = 2654435761, 2246822519


def fingerprint(tree: Any) -> str:
    """Sixteen hex digits of the paths, shapes, dtypes and values of all leaves.

    Each shard of a leaf is summed on its device, in integers, so the result depends neither on the
    order of a sum nor on the mesh. It detects bases that differ by accident, but not an attacker.

    Example:
        >>> fingerprint({'a': jnp.ones(3)}) == fingerprint({'a': jnp.ones(3)})
        True
        >>> fingerprint({'a': jnp.ones(3)}) == fingerprint({'a': jnp.ones(3).at[1].set(1.0000001)})
        False
    """
    leaves, _ = jax.tree.flatten_with_path(tree)
    known = {id(leaf): _sums(leaf) for leaf in {id(leaf): leaf for _, leaf in leaves}.values()}
    parts = jax.device_get([known[id(leaf)] for _, leaf in leaves])
    sums = np.asarray([np.sum([(0, 0), *each], axis=0, dtype=np.uint32) for each in parts])
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
    digest = hashlib.sha256()
    for (path, leaf), pair in zip(leaves, sums, strict=True):
        name = f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {pair.tolist()}\n'
        digest.update(name.encode())
    return digest.hexdigest()[:16]


def _sums(leaf: jax.Array) -> list[jax.Array]:
    """The sums of a leaf's shards in this process; of equal replicas, only the first counts."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    strides = np.cumprod([1, *leaf.shape[:0:-1]], dtype=np.uint64)[::-1][: leaf.ndim]
    found = []
    for part in leaf.addressable_shards:
        if part.replica_id == 0:
            starts = [where.start or 0 for where in part.index]
            first = np.uint32(int(np.dot(starts, strides.astype(object))) % 2**32 if starts else 0)
            found.append(_sum(part.data, first, strides.astype(np.uint32)))
    return found


@jax.jit
def _sum(part: jax.Array, first: jax.Array, strides: jax.Array) -> jax.Array:
    """Two sums modulo 2**32 over all numbers: their bits times factors that depend on the place."""
    if part.dtype.kind in 'biu':
        bits = part.astype(jnp.uint32)
    else:
        width = min(part.dtype.itemsize, 4)
        bits = jax.lax.bitcast_convert_type(part, f'uint{8 * width}').astype(jnp.uint32)
    place = first
    for axis in range(part.ndim):
        place = place + strides[axis] * jax.lax.broadcasted_iota(jnp.uint32, part.shape, axis)
    if bits.ndim > part.ndim:  # eight bytes are two numbers
        place = 2 * place[..., None] + jnp.arange(2, dtype=jnp.uint32)
    mixed = [((place * jnp.uint32(odd)) ^ (place >> 15)) | jnp.uint32(1) for odd in _ODD]
    return jnp.stack([jnp.sum((bits ^ (bits >> 13)) * each, dtype=jnp.uint32) for each in mixed])
