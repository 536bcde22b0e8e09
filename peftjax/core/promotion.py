"""Explicit promotion of dtypes, since JAX can be set to refuse implicit promotion."""

from typing import Any

import jax
import jax.numpy as jnp


def wider(*arrays: jax.Array) -> jnp.dtype:
    """The common dtype of the arrays, as JAX promotes by default.

    >>> wider(jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float16))
    dtype('float32')
    """
    with jax.numpy_dtype_promotion('standard'):
        return jnp.result_type(*(array.dtype for array in arrays))


def widened(tree: Any, real: bool = False) -> Any:
    """The tree with all floats in their common dtype; integers stay.

    With `real`, for tables beside a real matrix, only real floats are widened: complex numbers stay
    as they are and do not count.

    >>> tree = [jnp.ones(2, each) for each in ('bfloat16', 'float32', 'int32', 'complex64')]
    >>> [leaf.dtype.name for leaf in widened(tree)]
    ['complex64', 'complex64', 'int32', 'complex64']
    >>> [leaf.dtype.name for leaf in widened(tree, real=True)]
    ['float32', 'float32', 'int32', 'complex64']
    """
    kind = jnp.floating if real else jnp.inexact

    def is_float(leaf: jax.Array) -> bool:
        return jnp.issubdtype(leaf.dtype, kind)

    wide = wider(*filter(is_float, jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, wide) if is_float(leaf) else leaf, tree)


def lifted(array: jax.Array, like: jax.Array) -> jax.Array:
    """`array` with leading axes of size one, until it has as many axes as `like`.

    >>> lifted(jnp.ones(4), jnp.ones((2, 3, 4))).shape
    (1, 1, 4)
    """
    return jnp.expand_dims(array, range(like.ndim - array.ndim))
