"""Lifts functions of one matrix to a transform of a model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jaxtyping import Inexact, Key, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.base import (
    AdapterError,
    MergeError,
    Model,
    PeftTransform,
    Use,
    WeightAdapter,
    WeightRule,
    check_entries,
    is_abstract,
)
from peftjax.core.layout import Layout
from peftjax.core.promotion import widened
from peftjax.core.quantized import dense, is_quantized
from peftjax.core.sites import WeightSite

Leaves = Any


def weightwise(
    init_weight: Callable[
        [PRNGKeyArray, Inexact[jax.Array, 'in out'], WeightSite], Mapping[str, Any]
    ],
    merge_weight: Callable[
        [Leaves, Inexact[jax.Array, 'in out'], str], Inexact[jax.Array, 'in out']
    ],
    apply_weight: Callable[[Leaves, Use, str], Inexact[jax.Array, '...']] | None = None,
    *,
    constants: Callable[[str, Layout], dict[str, Any]] | None = None,
    prepare: Callable[[Leaves, Inexact[jax.Array, 'in out'], str], Leaves] | None = None,
    targets: paths.Targets,
    materialize: bool = False,
) -> PeftTransform:
    r"""A transform from functions of one weight matrix `W: [in, out]`.

    The functions see one matrix at a time, whatever the leaf's rank and stack: a
    `[layers, d, heads, d_head]` query kernel is `layers` matrices `[d, heads * d_head]`.
    `merge_weight` is the definition of the method; `apply_weight` computes the same product
    `x W'` more cheaply, and where it is left out the merged matrix is formed at every use.

    Args:
      init_weight: `(key, matrix, site) -> {name: array}`. May look at `matrix` (DoRA, PiSSA).
      merge_weight: `(leaves, matrix, path) -> matrix` of the same shape. Leaves and matrix come in
        the wider of their dtypes; the result is rounded to the model's own once, at the end.
      apply_weight: `(leaves, use, path) -> result`, see `Use`.
      constants: `(path, layout) -> {name: array}`, arrays that do not train (random projections,
        masks, positions), stack axes in front; `merge_weight` and `apply_weight` find them among
        their leaves. Draw them from a seed, so that the adapter need not hold them.
      prepare: `(leaves, matrix, path) -> leaves`, see `WeightRule`.
      targets: regular expressions for leaf or module paths, see `Sites.match_weights`.
      materialize: also accept leaves whose uses cannot be followed; their merged weight is
        computed as a whole in every step.

    Returns:
      A `PeftTransform` whose adapter is `{leaf path: WeightAdapter}`.

    Raises:
      TargetError: from `init`, if a target matches nothing or a leaf that cannot be adapted.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> scale = peftjax.weightwise(
    ...     init_weight=lambda key, matrix, site: {'s': jnp.ones(matrix.shape[1])},
    ...     merge_weight=lambda leaves, matrix, path: matrix * leaves['s'][None],
    ...     targets=r'kernel')
    >>> dense, x = nn.Dense(3), jnp.ones((2, 4))
    >>> model = peftjax.wrap(dense, dense.init(jax.random.key(0), x), x)
    >>> scale.init(jax.random.key(1), model)['kernel']['s'].shape
    (3,)
    """
    merge_weight = _in_the_wider_dtype(merge_weight)

    def init(key: PRNGKeyArray, model: Model) -> dict[str, WeightAdapter]:
        leaves = paths.flatten(model.params)
        return {
            site.path: _init_site(
                paths.fold_in(key, site.path), leaves[site.path], site, init_weight
            )
            for site in model.sites.match_weights(targets, materialize)
        }

    def merge(params: Any, adapter: dict[str, WeightAdapter]) -> Any:
        _check_made_here(adapter)
        leaves = paths.flatten(params)
        check_leaves(leaves, adapter)
        refuse_quantized(leaves, adapter)
        return paths.replace(
            params,
            {
                path: merge_leaf(
                    leaves[path], entry.layout, in_force(path, entry), at(merge_weight, path)
                )
                for path, entry in adapter.items()
            },
        )

    def rules(adapter: dict[str, WeightAdapter]) -> dict[str, WeightRule]:
        _check_made_here(adapter)
        return {path: _rule(path, entry) for path, entry in adapter.items()}

    def _rule(path: str, entry: WeightAdapter) -> WeightRule:
        merged = at(merge_weight, path)
        forward = _by_merging(merged) if apply_weight is None else at(apply_weight, path)
        rule = WeightRule(
            in_force(path, entry),
            entry.layout,
            forward,
            merged,
            prepare=None if prepare is None else at(prepare, path),
        )
        return whole_leaf(rule) if entry.layout.opaque else rule

    def in_force(path: str, entry: WeightAdapter) -> dict[str, Any]:
        # An abstract adapter is looked at and never computed with: nothing is drawn for it.
        if constants is None or is_abstract(dict(entry)):
            return dict(entry)
        return {**entry, **constants(path, entry.layout)}

    return PeftTransform(init, merge, rules)


def at(function: Callable[..., Any], path: str) -> Callable[..., Any]:
    """`function` with its last argument, the path, given."""
    return lambda leaves, value: function(leaves, value, path)


def _in_the_wider_dtype(
    merge_weight: Callable[[Leaves, jax.Array, str], jax.Array],
) -> Callable[[Leaves, jax.Array, str], jax.Array]:
    def merged(leaves: Leaves, matrix: jax.Array, path: str) -> jax.Array:
        # A product of factors in bfloat16 is not rounded to it: a float32 base deserves better.
        leaves, wide = widened((leaves, matrix))
        return merge_weight(leaves, wide, path).astype(matrix.dtype)

    return merged


def merge_leaf(
    leaf: Inexact[jax.Array, '*shape'],
    layout: Layout,
    leaves: Leaves,
    merged: Callable[[Leaves, Inexact[jax.Array, 'in out']], Inexact[jax.Array, 'in out']],
) -> Inexact[jax.Array, '*shape']:
    """`leaf` with `merged(leaves, matrix)` in place of each matrix of its stack."""
    matrix = layout.to_matrix(leaf)
    result = over_stack(merged, layout)(dict(leaves), matrix)
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


def on_plain_dots(
    apply_weight: Callable[[Leaves, Use, str], Inexact[jax.Array, 'T out']],
    merge_weight: Callable[
        [Leaves, Inexact[jax.Array, 'in out'], str], Inexact[jax.Array, 'in out']
    ],
) -> Callable[[Leaves, Use, str], Inexact[jax.Array, '...']]:
    """`apply_weight` where `[T, in]` meets the matrix; elsewhere the merged matrix is formed.

    For methods that act on the input or on blocks of it, which a lookup, a convolution and a tied
    head do not have in that form.
    """
    merge_weight = _in_the_wider_dtype(merge_weight)

    def apply(leaves: Leaves, use: Use, path: str) -> Inexact[jax.Array, '...']:
        if use.kind == 'dot' and not use.transposed:
            return apply_weight(leaves, use, path)
        return use.product(use.x, merge_weight(leaves, use.weight(), path))

    return apply


def whole_leaf(rule: WeightRule) -> WeightRule:
    """`rule` acting on the leaf as a whole: for leaves whose uses cannot be followed."""
    layout, merged = rule.layout, rule.merged
    assert layout is not None and merged is not None
    return WeightRule(
        (),
        None,
        lambda _, use: use.base(use.x),
        lambda _, matrix: matrix,
        base=lambda leaf: merge_leaf(leaf, layout, rule.leaves, merged),
    )


def refuse_quantized(leaves: Mapping[str, Any], adapted: Iterable[str]) -> None:
    """Raises `MergeError` if a leaf to be merged is quantised."""
    for path in adapted:
        if is_quantized(leaves[path]):
            raise MergeError(
                f'{path!r} is a {leaves[path]!r}, and nothing can be added to codes; pass '
                'peftjax.dequantize(params) for weights in full precision, which peftjax.quantize '
                'can quantise again'
            )


def check_leaves(leaves: dict[str, Any], adapter: dict[str, WeightAdapter]) -> None:
    """Raises `AdapterError` unless every adapted leaf is there with the shape it was made for."""
    for path, entry in adapter.items():
        if path not in leaves:
            raise AdapterError(
                f'the adapter has an entry for {path!r}, which these params lack; near names: '
                f'{paths.near_names(path, leaves)}. Was it made for another model?'
            )
        if leaves[path].shape != entry.layout.shape:
            raise AdapterError(
                f'the adapter was made for {path!r} of shape {entry.layout.shape}, but these '
                f'params have {leaves[path].shape} {leaves[path].dtype}. Was it made for another '
                'model?'
            )


def _check_made_here(adapter: Any) -> None:
    check_entries(
        adapter,
        lambda entry: isinstance(entry, WeightAdapter),
        'a weight method (lora, weightwise)',
        'WeightAdapter',
    )


def _init_site(
    key: PRNGKeyArray, leaf: Any, site: WeightSite, init_weight: Callable[..., Mapping[str, Any]]
) -> WeightAdapter:
    layout = site.layout
    assert layout is not None
    if any(isinstance(each, jax.ShapeDtypeStruct) for each in jax.tree.leaves(leaf)):
        raise TypeError(
            f'params are abstract ({site.path!r} is a ShapeDtypeStruct); write '
            'jax.eval_shape(tx.init, key, model), or give real params'
        )
    keys = jax.random.split(key, layout.stack_shape) if layout.stack else key

    def start(keys: Key[jax.Array, '*stack'], leaf: Any) -> Mapping[str, Any]:
        one = over_stack(lambda key, matrix: init_weight(key, matrix, site), layout)
        return one(keys, layout.to_matrix(dense(leaf)))

    # Compiled, a quantised weight is read for those methods only that start from its values.
    return WeightAdapter(layout, (jax.jit(start) if is_quantized(leaf) else start)(keys, leaf))


def _by_merging(
    merged: Callable[[Leaves, Inexact[jax.Array, 'in out']], Inexact[jax.Array, 'in out']],
) -> Callable[[Leaves, Use], Inexact[jax.Array, '...']]:
    return lambda leaves, use: use.product(use.x, merged(leaves, use.weight()))
