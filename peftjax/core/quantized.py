"""Quantised frozen weights, dequantised on use."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from peftjax.core.holes import is_hole
from peftjax.core.layout import Layout

Arrays = Mapping[str, Any]


class Scheme(Protocol):
    """How one matrix is kept, `[rows, columns]` as PyTorch has it: outputs, inputs (of a lookup
    table its rows, features). A frozen dataclass, since it is a static part of a leaf.
    """

    @property
    def name(self) -> str:
        """Short, for tables and messages."""
        ...

    def pack(self, matrix: Float[jax.Array, 'rows columns']) -> dict[str, jax.Array]:
        """The arrays that store the matrix, among them `codes: [rows, any]`. Pure and traceable."""
        ...

    def unpack(self, arrays: Arrays) -> Float32[jax.Array, 'rows columns']:
        """The matrix again, float32; columns that `pack` added may follow the matrix's own."""
        ...


@jax.tree_util.register_pytree_with_keys_class
class QuantizedArray:
    """A leaf of the base stored by a `Scheme`, as arrays of codes and scales.

    It has the shape and dtype of the original leaf. `adapt` dequantises it inside the layer that
    uses it, and again in the backward pass, so that at most one layer is in full precision at a
    time. It is a pytree of its arrays. Each array has the leaf's stack (layers, experts) as its
    first axes, so that `scan`, `vmap` and sharding work.

    Attributes:
      arrays: of the scheme, by name.
      scheme: see `Scheme`.
      matrix: the layout of one matrix of the stack.
      dtype: of the dequantised leaf.

    >>> mlp = peftjax.quantize(peftjax.testing.tiny_mlp(), 'int8', targets='hidden')
    >>> mlp.params['hidden']['kernel']
    QuantizedArray(int8, (4, 8) float32, 64 bytes)
    """

    def __init__(self, arrays: Arrays, scheme: Scheme, matrix: Layout, dtype: Any):
        self.arrays: dict[str, Any] = dict(arrays)
        self.scheme: Scheme = scheme
        self.matrix: Layout = matrix
        self.dtype: Any = dtype

    @classmethod
    def of(cls, leaf: Float[jax.Array, '...'], layout: Layout, scheme: Scheme) -> 'QuantizedArray':
        """`leaf` by `scheme`.

        Raises:
          ValueError: the leaf's stack is not its first axes.
        """
        one, pack = one_matrix(layout), scheme.pack
        for _ in layout.stack:
            pack = jax.vmap(pack)
        matrix = layout.to_matrix(leaf)
        arrays = pack(matrix if layout.lookup else jnp.swapaxes(matrix, -1, -2))
        return cls(arrays, scheme, one, leaf.dtype)

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the stack axes, which come before the matrix."""
        return tuple(self.arrays['codes'].shape[:-2])

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.stack, *self.matrix.shape)

    @property
    def layout(self) -> Layout:
        """Of the whole leaf."""
        return _stacked(self.matrix, self.stack)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all its arrays."""
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in self.arrays.values())

    def dequantize(self) -> Float[jax.Array, '...']:
        """The dequantised leaf."""
        unpack: Callable[[Arrays], jax.Array] = self.scheme.unpack
        for _ in self.stack:
            unpack = jax.vmap(unpack)
        layout = self.layout
        width = layout.outputs if layout.lookup else layout.inputs
        matrix = unpack(self.arrays)[..., :width].astype(self.dtype)
        return layout.from_matrix(matrix if layout.lookup else jnp.swapaxes(matrix, -1, -2))

    def __repr__(self) -> str:
        name = self.scheme.name
        if not hasattr(self.arrays['codes'], 'shape'):  # a tree of shardings, say
            return f'QuantizedArray({name}, {self.arrays!r})'
        return f'QuantizedArray({name}, {self.shape} {jnp.dtype(self.dtype)}, {self.nbytes} bytes)'

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        names = tuple(sorted(self.arrays))
        children = [(jax.tree_util.DictKey(name), self.arrays[name]) for name in names]
        return children, (names, self.scheme, self.matrix, self.dtype)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> 'QuantizedArray':
        names, *rest = static
        return cls(dict(zip(names, children, strict=True)), *rest)


def is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, QuantizedArray)


def dense(leaf: Any) -> Any:
    """`leaf` as an array, dequantised if need be."""
    return leaf.dequantize() if isinstance(leaf, QuantizedArray) else leaf


def dequantize(params: Any) -> Any:
    """`params` with every quantised leaf as an array again: what `merge` and exports need.

    >>> mlp = peftjax.quantize(peftjax.testing.tiny_mlp(), 'int8', targets='hidden')
    >>> peftjax.dequantize(mlp.params)['hidden']['kernel'].shape
    (4, 8)
    """
    return jax.tree.map(dense, params, is_leaf=is_quantized)


def like_dense(params: Any) -> Any:
    """Shape and dtype of every leaf of the model, including the leaves that moved away."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        params,
        is_leaf=lambda node: is_quantized(node) or is_hole(node),
    )


def one_matrix(layout: Layout) -> Layout:
    """The layout of one matrix of the stack.

    Raises:
      ValueError: the stack is not the leaf's first axes.
    """
    depth = len(layout.stack)
    if layout.stack != tuple(range(depth)):
        raise ValueError(
            f'a leaf of shape {layout.shape} stacks matrices along its axes {layout.stack}; to '
            'quantise it, these must be its first axes'
        )
    rows, columns = ((axis - depth for axis in axes) for axes in (layout.rows, layout.columns))
    return Layout(layout.shape[depth:], (), tuple(rows), tuple(columns), lookup=layout.lookup)


def _stacked(matrix: Layout, stack: tuple[int, ...]) -> Layout:
    """The layout of a stack of matrices."""
    depth = len(stack)
    rows, columns = ((axis + depth for axis in axes) for axes in (matrix.rows, matrix.columns))
    return Layout(
        (*stack, *matrix.shape), tuple(range(depth)), tuple(rows), tuple(columns), matrix.lookup
    )
