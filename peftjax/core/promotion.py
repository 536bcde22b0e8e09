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


def widened(tree: Any) -> Any:
    """The tree with all real floats in their common dtype; integers and complex numbers stay.

    A complex leaf is a table that a method made (the spectrum of C3A): a weight beside it is real.

    >>> dtypes = 'bfloat16', 'float32', 'int32', 'complex64'
    >>> [leaf.dtype.name for leaf in widened([jnp.ones(2, dtype) for dtype in dtypes])]
    ['float32', 'float32', 'int32', 'complex64']
    """
    wide = wider(*filter(_is_float, jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, wide) if _is_float(leaf) else leaf, tree)


def lifted(array: jax.Array, like: jax.Array) -> jax.Array:
    """`array` with leading axes of size one, until it has as many axes as `like`.

    >>> lifted(jnp.ones(4), jnp.ones((2, 3, 4))).shape
    (1, 1, 4)
    """
    return jnp.expand_dims(array, range(like.ndim - array.ndim))


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
