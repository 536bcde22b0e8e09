"""Lifts functions of one matrix to a transform of a model."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact, Key, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries, check_own
from peftjax.core.layout import Layout
from peftjax.core.merge import check_whole, in_the_wider_dtype, merge_leaf, over_stack
from peftjax.core.model import Model
from peftjax.core.numbers import HELD, is_held, is_plain, shown
from peftjax.core.quantized import dense, is_quantized
from peftjax.core.rules import LeafRule, MatrixRule, Rule
from peftjax.core.sites import WeightSite, check_real
from peftjax.core.transform import PeftTransform
from peftjax.core.use import Use

Leaves = Any
Numbers = Mapping[str, Any]


def weightwise(
    init_weight: Callable[
        [PRNGKeyArray, Inexact[jax.Array, 'in out'], WeightSite], Mapping[str, Any]
    ],
    merge_weight: Callable[[Leaves, Inexact[jax.Array, 'in out']], Inexact[jax.Array, 'in out']],
    apply_weight: Callable[[Leaves, Use], Inexact[jax.Array, '...']] | None = None,
    *,
    targets: paths.Targets,
    name: str,
    own: Callable[[WeightSite], Numbers] | None = None,
    prepare: Callable[[Leaves, Inexact[jax.Array, 'in out']], Leaves] | None = None,
    remainder: Callable[[Leaves, Inexact[jax.Array, 'in out']], Inexact[jax.Array, 'in out']]
    | None = None,
    materialize: bool = False,
    dense: bool = False,
    takes_complex: bool = False,
) -> PeftTransform:
    r"""A transform from functions of one weight matrix `W: [in, out]`.

    The functions see one matrix at a time, whatever the leaf's rank and stack: a
    `[layers, d, heads, d_head]` query kernel is `layers` matrices `[d, heads * d_head]`.
    `merge_weight` is the definition of the method; `apply_weight` computes the same product
    `x W'` more cheaply, and where it is left out the merged matrix is formed at every use.

    Args:
      init_weight: `(key, matrix, site) -> {name: array}`, what trains. May look at `matrix` (DoRA,
        PiSSA); `site.bias` is the path of the bias beside it, if the module has one.
      merge_weight: `(leaves, matrix) -> matrix` of the same shape. Leaves and matrix come in
        the wider of their dtypes; the result is rounded to the model's own once, at the end. A
        complex array among the leaves keeps its dtype, and does not make a real matrix complex.
      apply_weight: `(leaves, use) -> result`, see `Use`.
      targets: which weights, see `Sites.match_weights`.
      name: of the method. An adapter of another method is refused.
      own: `(site) -> {name: number or array}`, what does not train (scales, rates of dropout,
        random projections, positions). The functions find them among their leaves. A plain number
        becomes float32 []. An array has the axes of the stack in front, of length one if all
        layers share it. Draw it from a seed, so that a file need not hold it.
      prepare: `(leaves, matrix) -> leaves`, see `MatrixRule`.
      remainder: `(leaves, matrix) -> matrix`, the frozen matrix to use with new leaves, for a
        method that moves a part of it into the adapter, the same part for every key.
      materialize: also accept leaves whose uses cannot be followed; their merged weight is
        computed as a whole in every step.
      dense: `apply_weight` forms an array of the matrix's size, see `MatrixRule`; always without
        an `apply_weight`.
      takes_complex: the functions are right for complex weights too; others are refused.

    Returns:
      A `PeftTransform` whose adapter is `{leaf path: Entry}`.

    Raises:
      TargetError: from `init`, if a target matches nothing, or a leaf that cannot be adapted.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> scale = peftjax.weightwise(
    ...     init_weight=lambda key, matrix, site: {'s': jnp.ones(matrix.shape[1])},
    ...     merge_weight=lambda leaves, matrix: matrix * leaves['s'][None],
    ...     targets=r'kernel', name='scale')
    >>> dense, x = nn.Dense(3), jnp.ones((2, 4))
    >>> model = peftjax.wrap(dense, dense.init(jax.random.key(0), x), x)
    >>> adapter, frozen = scale.init(jax.random.key(1), model)
    >>> adapter['kernel']['s'].shape
    (3,)
    """
    merge_weight = in_the_wider_dtype(merge_weight)

    def sites_of(model: Model) -> list[WeightSite]:
        sites = model.sites.match_weights(targets, materialize)
        for site in () if takes_complex else sites:
            check_real(site.path, site, name)
        return sites

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Entry]:
        leaves, adapter = paths.flatten(model.params), {}
        for site in sites_of(model):
            arrays = _start(paths.fold_in(key, site.path), leaves[site.path], site, init_weight)
            adapter[site.path] = Entry(name, arrays, site.layout)
        return adapter

    def own_of(model: Model) -> Any:
        sites = sites_of(model)
        if own is None:
            return ()
        return Entry(name, _held_once({site.path: own(site) for site in sites}))

    def numbers_of(adapter: dict[str, Entry], numbers: Any) -> Mapping[str, Numbers]:
        check_entries(adapter, name)
        if own is None:
            return dict.fromkeys(adapter, {})
        check_own(numbers, adapter, name)
        return numbers

    def rules(adapter: dict[str, Entry], numbers: Any) -> dict[str, Rule]:
        known = numbers_of(adapter, numbers)
        return {
            path: _rule(entry, known[path], merge_weight, apply_weight, prepare, dense)
            for path, entry in adapter.items()
        }

    def rest(params: Any, adapter: dict[str, Entry], numbers: Any) -> Any:
        assert remainder is not None
        known = numbers_of(adapter, numbers)
        leaves, less = paths.slots(params), {}
        for path, entry in adapter.items():
            assert entry.layout is not None
            check_whole(path, leaves[path], name)
            stacked, given = _with_numbers(known[path], entry.layout)
            change = given(in_the_wider_dtype(remainder))
            less[path] = merge_leaf(leaves[path], entry.layout, {**entry, **stacked}, change)
        return paths.replace(params, less)

    return PeftTransform(start, rules, own_of, None if remainder is None else rest)


def _rule(
    entry: Entry,
    numbers: Numbers,
    merge_weight: Callable[[Leaves, Inexact[jax.Array, 'in out']], Inexact[jax.Array, 'in out']],
    apply_weight: Callable[[Leaves, Use], Inexact[jax.Array, '...']] | None,
    prepare: Callable[[Leaves, Inexact[jax.Array, 'in out']], Leaves] | None,
    dense: bool,
) -> Rule:
    """The rule at one leaf, from functions of one matrix."""
    layout = entry.layout
    assert layout is not None
    stacked, given = _with_numbers(numbers, layout)
    merge = given(merge_weight)
    rule = MatrixRule(
        {**entry, **stacked},
        layout,
        _by_merging(merge) if apply_weight is None else given(apply_weight),
        merge,
        None if prepare is None else given(prepare),
        dense=dense or apply_weight is None,
    )
    return whole_leaf(rule) if layout.opaque else rule


def _held_once(given: Mapping[str, Numbers]) -> dict[str, dict[str, jax.Array]]:
    """The numbers as arrays; a number that several sites share is one array.

    Raises:
      ValueError: float32 does not hold a number.
    """
    for path, numbers in given.items():
        for name, number in numbers.items():
            if is_plain(number) and not is_held(number):
                raise ValueError(
                    f'{name} of {path!r} is {shown(number)}; choose arguments that make it {HELD}'
                )
    arrays = {_same(n): _array(n) for numbers in given.values() for n in numbers.values()}
    return {
        path: {name: arrays[_same(number)] for name, number in numbers.items()}
        for path, numbers in given.items()
    }


def _same(value: Any) -> Any:
    """Equal for one object, and for views of the same part of an array on the host."""
    if not isinstance(value, np.ndarray):
        return id(value)
    return value.ctypes.data, value.shape, value.strides, value.dtype.str


def _array(value: Any) -> jax.Array:
    """In the default float dtype, or wider: a scale in bfloat16 would round the change."""
    if is_plain(value):
        return jnp.asarray(float(value))
    array = jnp.asarray(value)
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and not array.ndim
    return array.astype(jnp.promote_types(array.dtype, jnp.float32)) if narrow else array


def _with_numbers(
    numbers: Numbers, layout: Layout
) -> tuple[dict[str, Any], Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """A method's own numbers at a leaf: those that each matrix of the stack has for itself, and
    what puts those that all share among the leaves of a function."""
    stack = layout.stack_shape
    stacked = {name: each for name, each in numbers.items() if each.shape[: len(stack)] == stack}
    shared = {name: each for name, each in numbers.items() if name not in stacked}

    def given(function: Callable[..., Any]) -> Callable[..., Any]:
        if not shared:
            return function

        def with_shared(leaves: Any, value: Any) -> Any:
            # Not mapped and not sliced: all layers read the same array.
            ones = {name: each.reshape(each.shape[len(stack) :]) for name, each in shared.items()}
            result = function({**leaves, **ones}, value)
            if isinstance(result, Mapping):  # of `prepare`
                kept = result.items()
                return {name: each for name, each in kept if each is not ones.get(name)}
            return result

        return with_shared

    return stacked, given


def on_plain_dots(
    apply_weight: Callable[[Leaves, Use], Inexact[jax.Array, 'T out']],
    merge_weight: Callable[[Leaves, Inexact[jax.Array, 'in out']], Inexact[jax.Array, 'in out']],
) -> Callable[[Leaves, Use], Inexact[jax.Array, '...']]:
    """`apply_weight` where `[T, in]` meets the matrix; elsewhere the merged matrix is formed.

    For methods that act on the input or on blocks of it, which a lookup, a convolution and a tied
    head do not have in that form.
    """
    merge_weight = in_the_wider_dtype(merge_weight)

    def apply(leaves: Leaves, use: Use) -> Inexact[jax.Array, '...']:
        if use.kind == 'dot' and not use.transposed:
            return apply_weight(leaves, use)
        return use.product(use.x, merge_weight(leaves, use.weight()))

    return apply


def whole_leaf(rule: MatrixRule) -> LeafRule:
    """`rule` acting on the leaf as a whole: for leaves whose uses cannot be followed."""
    merge = rule.merge
    assert merge is not None
    return LeafRule(lambda leaf: merge_leaf(leaf, rule.layout, rule.leaves, merge))


def _start(
    key: PRNGKeyArray, leaf: Any, site: WeightSite, init_weight: Callable[..., Mapping[str, Any]]
) -> Mapping[str, Any]:
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

    # Under jit, a quantised weight is dequantised only if the method starts from its values.
    return (jax.jit(start) if is_quantized(leaf) else start)(keys, leaf)


def _by_merging(
    merge: Callable[[Leaves, Inexact[jax.Array, 'in out']], Inexact[jax.Array, 'in out']],
) -> Callable[[Leaves, Use], Inexact[jax.Array, '...']]:
    return lambda leaves, use: use.product(use.x, merge(leaves, use.weight()))
