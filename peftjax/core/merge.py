"""Merging: one function for every method, from its rules."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Inexact

from peftjax.core import paths
from peftjax.core.errors import AdapterError, MergeError
from peftjax.core.holes import is_hole
from peftjax.core.layout import Layout
from peftjax.core.promotion import widened
from peftjax.core.quantized import is_quantized
from peftjax.core.rules import LeafRule, MatrixRule, Rule, leaf_rule

_DENSE = 'frozen._replace(params=peftjax.dequantize(frozen.params))'


def merged(params: Any, rules: Mapping[str, Rule], dtype: Any = None) -> Any:
    """`params` with `rules` in force; see `PeftTransform.merge`."""
    _refuse_activations(rules)
    leaves = paths.slots(params)
    if dtype is not None:
        leaves = {path: _as(leaf, dtype) for path, leaf in leaves.items()}
    for path, rule in rules.items():
        check_leaf(path, rule, leaves)
        leaves[path] = _merged_leaf(path, rule, leaves[path])
    if left := [path for path, leaf in leaves.items() if is_hole(leaf)]:
        raise AdapterError(
            f'frozen.params has {leaves[left[0]]!r} at {left[0]!r}, but this adapter does not hold '
            'the leaf; pass the frozen that init returned with this adapter'
        )
    return paths.replace(params, leaves)


def _as(leaf: Any, dtype: Any) -> Any:
    if is_quantized(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return type(leaf)(leaf.shape, jnp.dtype(dtype)) if is_hole(leaf) else leaf.astype(dtype)


def _refuse_activations(rules: Mapping[str, Rule]) -> None:
    """Raises `MergeError` with the sites whose rule cannot be expressed as a weight."""
    sites = [
        path or 'the whole model'
        for path, rule in rules.items()
        if not isinstance(rule, LeafRule | MatrixRule)
        or (isinstance(rule, MatrixRule) and rule.merge is None)
    ]
    if sites:
        raise MergeError(
            f'nothing can be merged at {sites}: the method acts on activations there, which no '
            'weight can express. Keep the adapter and use peftjax.adapt(model, tx)'
        )


def _merged_leaf(path: str, rule: Rule, leaf: Any) -> jax.Array:
    before = leaf_rule(rule)
    refuse_quantized(path, leaf)
    if before is not None:
        leaf = replaced(before, leaf)
    if isinstance(rule, MatrixRule):
        assert rule.merge is not None
        return merge_leaf(leaf, rule.layout, rule.leaves, rule.merge)
    return leaf


def refuse_quantized(path: str, leaf: Any, instead: str = _DENSE) -> None:
    """Raises `MergeError` if a leaf is quantised."""
    if is_quantized(leaf):
        raise MergeError(
            f'{path!r} is a {leaf!r}, and nothing can be added to its codes; write {instead} for '
            'weights in full precision, which peftjax.quantize can quantise again'
        )


def check_whole(path: str, leaf: Any, method: str) -> None:
    """Raises unless a method can start from a part of a leaf: it is there, and not quantised."""
    if is_hole(leaf):
        raise ValueError(
            f'{method} starts from a part of {path!r}, which an earlier transform of the chain '
            'trains as a whole; leave that leaf out of the targets of one of them'
        )
    if is_quantized(leaf):
        raise MergeError(
            f'{method} starts from a part of {path!r}, a {leaf!r}, and nothing can be taken from '
            'its codes; write model.replace(params=peftjax.dequantize(model.params)) for weights '
            'in full precision. If loftq, earlier in the chain, made the codes, leave that leaf '
            'out of the targets of one of them'
        )


def replaced(rule: LeafRule, leaf: Any) -> jax.Array:
    """The array that replaces a leaf by a rule, in the leaf's dtype."""
    result = rule.replace(leaf)
    if result.shape != leaf.shape:
        raise AdapterError(
            f'the adapter has an array of shape {result.shape} {result.dtype} for a leaf of '
            f'{leaf.shape} {leaf.dtype}. Was it made for another model?'
        )
    return result.astype(leaf.dtype)


def check_leaf(path: str, rule: Rule, leaves: Mapping[str, Any]) -> None:
    """Raises `AdapterError` unless the leaf of a rule exists, with the shape it was made for."""
    if path not in leaves:
        raise AdapterError(
            f'the adapter acts on {path!r}, which these params lack'
            f'{paths.nearby(path, leaves)}. Was it made for another model?'
        )
    leaf, before = leaves[path], leaf_rule(rule)
    if isinstance(rule, MatrixRule) and rule.layout.shape != leaf.shape:
        raise AdapterError(
            f'the adapter was made for {path!r} of shape {rule.layout.shape}, but these params '
            f'have {leaf.shape} {leaf.dtype}. Was it made for another model?'
        )
    if is_hole(leaf) and (before is None or before.keeps != 'nothing'):
        raise AdapterError(
            f'frozen.params has {leaf!r} at {path!r}, but this transform needs the leaf; pass the '
            'frozen that its own init returned'
        )


def merge_leaf(
    leaf: Inexact[jax.Array, '*shape'],
    layout: Layout,
    leaves: Any,
    merge: Callable[[Any, Inexact[jax.Array, 'in out']], Inexact[jax.Array, 'in out']],
) -> Inexact[jax.Array, '*shape']:
    """`leaf` with `merge(leaves, matrix)` in place of each matrix of its stack."""
    matrix = layout.to_matrix(leaf)
    result = over_stack(merge, layout)(leaves, matrix)
    if result.shape != matrix.shape:
        raise ValueError(
            f'merge_weight returned shape {result.shape[len(layout.stack) :]} for a '
            f'matrix {matrix.shape[len(layout.stack) :]}; it must keep the shape'
        )
    return layout.from_matrix(result).astype(leaf.dtype)


def over_stack(function: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """`function` of one matrix as a function of the stack."""
    for _ in layout.stack:
        function = jax.vmap(function)
    return function


def in_the_wider_dtype(merge: Callable[[Any, jax.Array], jax.Array]) -> Any:
    """`merge` computed in the wider dtype of leaves and matrix, rounded once at the end."""

    def wide(leaves: Any, matrix: jax.Array) -> jax.Array:
        # On a float32 base, a product of bfloat16 factors is not rounded to bfloat16.
        # A complex table of a method (C3A's spectrum) does not make a real matrix complex.
        leaves, full = widened((leaves, matrix), real=not jnp.iscomplexobj(matrix))
        return merge(leaves, full).astype(matrix.dtype)

    return wide
