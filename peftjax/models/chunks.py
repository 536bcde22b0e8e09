"""Cuts one axis into equal parts for a scan, and joins them again."""

import jax
import jax.numpy as jnp


def cut(array: jax.Array, most: int, axis: int = 1) -> jax.Array:
    """[.., T, ..] -> [parts, .., at most `most`, ..]: equal parts, the last padded with zeros.

    Example:
        >>> cut(jnp.arange(1, 6)[None], most=3)[:, 0]
        Array([[1, 2, 3],
               [4, 5, 0]], dtype=int32)
    """
    length = array.shape[axis]
    count = -(-length // most)
    size = -(-length // count)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, count * size - length)
    shape = (*array.shape[:axis], count, size, *array.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(array, padding).reshape(shape), axis, 0)


def join(parts: jax.Array, length: int, axis: int = 1) -> jax.Array:
    """Undoes `cut` for an axis of this length.

    Example:
        >>> x = jnp.ones((2, 5, 3))
        >>> join(cut(x, most=2), 5).shape
        (2, 5, 3)
    """
    array = jnp.moveaxis(parts, 0, axis)
    array = array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
    return jax.lax.slice_in_dim(array, 0, length, axis=axis)
