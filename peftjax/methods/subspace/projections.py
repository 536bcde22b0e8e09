"""Random projections of a short vector to long ones, by which `intrinsic` moves weights."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt32

from peftjax.methods import draws
from peftjax.methods.subspace import fastfood

Projection = Literal['fastfood', 'dense', 'sparse']
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)


def dense_rows(
    seed: int, path: str, size: int, dimension: int
) -> Float32[np.ndarray, '{size} {dimension}']:
    """Normal rows of length 1, the same on every machine.

    >>> rows = dense_rows(0, 'kernel', 5, 3)
    >>> rows.shape, np.linalg.norm(rows, axis=1).round(3).tolist()
    ((5, 3), [1.0, 1.0, 1.0, 1.0, 1.0])
    """
    rows = draws.stream(seed, path).standard_normal((size, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def numbers_of(
    projection: Projection, seed: int, path: str, size: int, dimension: int
) -> dict[str, jax.Array]:
    """The arrays that a leaf's projection is made from: a dense matrix, or else a seed.

    Args:
        projection: which kind.
        seed: of all projections.
        path: of the leaf.
        size: how many numbers the leaf has.
        dimension: `d`.
    """
    if projection == 'dense':
        return {'matrix': jnp.asarray(dense_rows(seed, path, size, dimension))}
    return {'seed': jnp.asarray(np.uint32(zlib.crc32(f'{seed}/{path}'.encode())))}


def sparse(
    vector: Float[jax.Array, ' dimension'], size: int, seed: UInt32[jax.Array, ''], total: int
) -> Float32[jax.Array, ' {size}']:
    """`P vector` with a matrix of density `1 / sqrt(total)`, whose entries are hashes of a seed.

    `size * dimension / sqrt(total)` entries, at least 1, have random places and signs, and all have
    one magnitude: the root mean square of the lengths of the rows is 1.

    Args:
        vector: `[d]`.
        size: of the result.
        seed: of the places and signs.
        total: `D`, the numbers in all leaves that move.
    """
    dimension = len(vector)
    count = max(1, round(size * dimension / math.sqrt(total)))
    index = jax.lax.broadcasted_iota(jnp.uint32, (count, 1), 0)
    keys = jnp.broadcast_to(seed, (count, 1))
    row, column, sign = (fastfood.hashed(index, keys, stream)[:, 0] for stream in range(3))
    values = vector.astype(jnp.float32)[column % np.uint32(dimension)]
    signed = jnp.where(sign & 1, values, -values) * math.sqrt(size / count)
    return jnp.zeros(size, jnp.float32).at[row % np.uint32(size)].add(signed)


def changes(
    projection: Projection,
    theta: Float[jax.Array, ' dimension'],
    leaves: Sequence[tuple[str, tuple[int, ...]]],
    own: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """`P_i theta` of every leaf, in its shape and in float32.

    Args:
        projection: which kind.
        theta: `[d]`.
        leaves: path and shape of each.
        own: by path, the seed of the projection, or the matrix of a dense one.
    """
    sizes = tuple(math.prod(shape) for _, shape in leaves)
    if projection == 'fastfood':
        seeds = jnp.stack([own[path]['seed'] for path, _ in leaves])
        found = fastfood.project(theta, sizes, seeds)
    elif projection == 'sparse':
        total = sum(sizes)
        found = [
            sparse(theta, size, own[path]['seed'], total)
            for (path, _), size in zip(leaves, sizes, strict=True)
        ]
    else:
        found = [own[path]['matrix'] @ theta.astype(jnp.float32) for path, _ in leaves]
    return {path: each.reshape(shape) for (path, shape), each in zip(leaves, found, strict=True)}
