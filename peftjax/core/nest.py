"""Nesting: two rules at one site, one of them applied to the result of the other."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from peftjax.core.rules import CallRule, LeafRule, MatrixRule, ModuleRule, Rule
from peftjax.core.use import ModelCall, ModuleUse, Use


class OrderError(ValueError):
    """Two rules that cannot be nested in this order; perhaps they can in another."""


_R = TypeVar('_R', ModuleRule, CallRule)


def nest(path: str, inner: Rule, outer: Rule) -> Rule:
    """The rule that applies `outer` to the result of `inner`.

    Raises:
        OrderError: not in this order.
        ValueError: in no order.
    """
    if isinstance(outer, MatrixRule) and outer.before is not None:  # of a chain inside of the chain
        first = nest(path, inner, outer.before)
        return nest(path, first, dataclasses.replace(outer, before=None))
    if isinstance(outer, LeafRule) and isinstance(inner, LeafRule | MatrixRule):
        return _nest_leaf(path, inner, outer)
    if isinstance(inner, LeafRule) and isinstance(outer, MatrixRule):
        return dataclasses.replace(outer, before=inner)
    if isinstance(inner, MatrixRule) and isinstance(outer, MatrixRule):
        return _nest_matrix(path, inner, outer)
    if isinstance(inner, ModuleRule) and isinstance(outer, ModuleRule):
        return _nest_module(inner, outer)
    if isinstance(inner, CallRule) and isinstance(outer, CallRule):
        return _nest_call(inner, outer)
    raise ValueError(f'{path!r} names both a weight and a module; rename one of them')


def _nest_leaf(path: str, inner: LeafRule | MatrixRule, outer: LeafRule) -> LeafRule:
    if outer.keeps != 'all' or isinstance(inner, MatrixRule):
        raise OrderError(
            f'a transform replaces {path!r} as a whole after another has adapted it, which would '
            'lose the adaptation'
        )
    return LeafRule(lambda leaf: outer.replace(_in_dtype(inner, leaf)), inner.keeps)


def _in_dtype(rule: LeafRule, leaf: Any) -> jax.Array:
    return rule.replace(leaf).astype(leaf.dtype)


def _nest_matrix(path: str, inner: MatrixRule, outer: MatrixRule) -> MatrixRule:
    inner_merge, outer_merge = inner.merge, outer.merge
    if inner_merge is None:
        raise OrderError(
            f'a transform acts on {path!r} after one that no matrix can express (gated, activated)'
        )

    def apply(leaves: Any, use: Use) -> jax.Array:
        inner_key, outer_key = (None, None) if use.key is None else jax.random.split(use.key)

        def forward(x: jax.Array) -> jax.Array:
            return inner.apply(leaves[0], use.replace(x=x, key=inner_key))

        def weight() -> jax.Array:
            return inner_merge(leaves[0], use.weight())

        return outer.apply(leaves[1], use.replace(forward=forward, weight=weight, key=outer_key))

    def merge(leaves: Any, matrix: jax.Array) -> jax.Array:
        assert outer_merge is not None
        return outer_merge(leaves[1], inner_merge(leaves[0], matrix))

    def prepare(leaves: Any, matrix: jax.Array) -> Any:
        first, second = leaves
        if outer.prepare is not None:
            second = outer.prepare(second, inner_merge(first, matrix))
        if inner.prepare is not None:
            first = inner.prepare(first, matrix)
        return first, second

    prepared = inner.prepare is not None or outer.prepare is not None
    return MatrixRule(
        (inner.leaves, outer.leaves),
        outer.layout,
        apply,
        None if outer_merge is None else merge,
        prepare if prepared else None,
        inner.before,
        inner.whole or outer.whole,
        outer_merge is not None and (inner.dense or outer.dense),
        inner.reads_ids or outer.reads_ids,
    )


def _nest_module(inner: ModuleRule, outer: ModuleRule) -> ModuleRule:
    def apply(leaves: Any, use: ModuleUse) -> jax.Array:
        keys = (None, None) if use.key is None else jax.random.split(use.key)
        first = dataclasses.replace(use, key=keys[0])
        second = dataclasses.replace(use, output=inner.apply(leaves[0], first), key=keys[1])
        if use.attention is not None:
            attend = _after(inner, leaves[0], first)
            again = dataclasses.replace(use.attention, attend=attend)
            second = dataclasses.replace(second, attention=again)
        return outer.apply(leaves[1], second)

    def prepare(leaves: Any, params: Mapping[str, Any]) -> Any:
        return tuple(
            each if rule.prepare is None else rule.prepare(each, params)
            for rule, each in zip((inner, outer), leaves, strict=True)
        )

    def shorten(length: jax.Array) -> ModuleRule:
        return _nest_module(_shortened(inner, length), _shortened(outer, length))

    prepared = inner.prepare is not None or outer.prepare is not None
    lengths = inner.shorten is not None or outer.shorten is not None
    return ModuleRule(
        (inner.leaves, outer.leaves),
        apply,
        prepare if prepared else None,
        inner.whole or outer.whole,
        shorten if lengths else None,
        inner.only_virtual and outer.only_virtual,
    )


def _shortened(rule: _R, length: jax.Array) -> _R:
    return rule if rule.shorten is None else rule.shorten(length)


def _after(inner: ModuleRule, leaves: Any, use: ModuleUse) -> Callable[..., jax.Array]:
    """Attention over other arrays, with what `inner` makes of it."""

    def attend(query: Any, key: Any, value: Any, mask: Any, bias: Any) -> jax.Array:
        attention = use.attention
        assert attention is not None
        output = attention.attend(query, key, value, mask, bias)
        longer = dataclasses.replace(
            attention, query=query, key=key, value=value, mask=mask, bias=bias
        )
        return inner.apply(leaves, dataclasses.replace(use, output=output, attention=longer))

    return attend


def _nest_call(inner: CallRule, outer: CallRule) -> CallRule:
    if inner.virtual_tokens and outer.virtual_tokens:
        raise ValueError(
            f'two transforms of the chain add virtual tokens ({inner.virtual_tokens} and '
            f'{outer.virtual_tokens}); write one with the sum of both'
        )

    def apply(leaves: Any, call: ModelCall) -> Any:
        keys = (None, None) if call.key is None else jax.random.split(call.key)

        def run(arguments: Mapping[str, Any]) -> Any:
            return inner.apply(
                leaves[0], dataclasses.replace(call, arguments=arguments, key=keys[0])
            )

        return outer.apply(leaves[1], dataclasses.replace(call, key=keys[1], run=run))

    def shorten(length: jax.Array) -> CallRule:
        return _nest_call(_shortened(inner, length), _shortened(outer, length))

    lengths = inner.shorten is not None or outer.shorten is not None
    return CallRule(
        (inner.leaves, outer.leaves),
        apply,
        inner.virtual_tokens + outer.virtual_tokens,
        inner.keeps_virtual or outer.keeps_virtual,
        shorten if lengths else None,
    )
