"""Composition: several methods as one transform. Only this file decides the nesting."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from peftjax.core import paths
from peftjax.core.entries import Adapter, found_in
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.rules import (
    CallRule,
    LeafRule,
    MatrixRule,
    ModuleRule,
    Rule,
)
from peftjax.core.transform import About, PeftTransform
from peftjax.core.use import ModelCall, ModuleUse, Use

_R = TypeVar('_R', ModuleRule, CallRule)


def chain(*transforms: PeftTransform) -> PeftTransform:
    """Applies transforms from left to right: each acts on what those before it left.

    Args:
      *transforms: the methods, for example `lora(...)` and `select(...)`.

    Returns:
      A transform whose adapter is a tuple with one entry for each of `transforms`; so is
      `frozen.own`.

    Raises:
      TypeError: an argument is no transform.
      ValueError: from `init`, if one replaces a leaf that an earlier one adapts, follows a gated
        one on a leaf, or if two add virtual tokens.
      AdapterError: from `merge` and at a call, if the adapter is not such a tuple.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.chain(peftjax.lora(rank=2, targets=r'hidden'), peftjax.select(r'.*/bias'))
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> len(adapter)
    2
    """
    _check_members(transforms, 'chain(first, second)')

    def unpack(adapter: Adapter) -> tuple[Adapter, ...]:
        # A list is what a tuple becomes in some checkpoint formats.
        if not isinstance(adapter, (tuple, list)):
            raise AdapterError(
                f'a chain takes a tuple with an adapter for each of its {len(transforms)} '
                f'transforms, found {found_in(adapter)}; init of this chain makes one'
            )
        return tuple(adapter)

    combined = _combined(
        {str(i): transform for i, transform in enumerate(transforms)}, tuple, unpack
    )
    return combined.replace(about=About('chain', {'transforms': transforms}))


def named_chain(transforms: Mapping[str, PeftTransform]) -> PeftTransform:
    """`chain` with names: the adapter is a dict with the names of `transforms`.

    The mapping's own order is the order of application.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.named_chain({'lora': peftjax.lora(rank=2, targets=r'hidden'),
    ...                           'bias': peftjax.select(r'.*/bias')})
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> sorted(adapter)
    ['bias', 'lora']
    """
    if not isinstance(transforms, Mapping):
        raise TypeError(
            f'named_chain takes a dict of transforms by name, found a {type(transforms).__name__}; '
            'write chain(first, second) for transforms without names'
        )
    _check_members(tuple(transforms.values()), "named_chain({'first': first})")
    names = tuple(transforms)

    def pack(parts: list[Any]) -> dict[str, Any]:
        return dict(zip(names, parts, strict=True))

    def unpack(adapter: dict[str, Adapter]) -> tuple[Adapter, ...]:
        if not isinstance(adapter, Mapping) or sorted(adapter) != sorted(names):
            raise AdapterError(
                f'the chain takes a dict with the parts {sorted(names)}, found '
                f'{found_in(adapter)}; init of this chain makes one'
            )
        return tuple(adapter[name] for name in names)

    combined = _combined(transforms, pack, unpack)
    return combined.replace(about=About('named_chain', {'transforms': transforms}))


def _check_members(transforms: tuple[Any, ...], form: str) -> None:
    for number, each in enumerate(transforms):
        if isinstance(each, PeftTransform):
            continue
        if isinstance(each, list | tuple):
            raise TypeError(f'argument {number} is a {type(each).__name__}; write {form}')
        raise TypeError(
            f'argument {number} is a {type(each).__name__} and no transform; write {form} with '
            'transforms such as peftjax.lora(...)'
        )


def _combined(
    transforms: Mapping[str, PeftTransform],
    pack: Callable[[list[Any]], Any],
    unpack: Callable[[Any], tuple[Any, ...]],
) -> PeftTransform:
    members = tuple(transforms.items())

    def parts(adapter: Adapter, own: Any) -> list[tuple[PeftTransform, Adapter, Any]]:
        entries = unpack(adapter)
        if len(entries) != len(members):
            raise AdapterError(
                f'the chain has {len(members)} transforms, the adapter {len(entries)} parts; init '
                'of this chain makes one for each'
            )
        return [
            (transform, entry, numbers)
            for (_, transform), entry, numbers in zip(members, entries, unpack(own), strict=True)
        ]

    def start(key: jax.Array, model: Model) -> Adapter:
        return pack(
            [transform.start(paths.fold_in(key, name), model) for name, transform in members]
        )

    def own_of(model: Model) -> Any:
        return pack([transform.own(model) for _, transform in members])

    def rules(adapter: Adapter, own: Any) -> dict[str, Rule]:
        nested: dict[str, Rule] = {}
        for transform, entry, numbers in parts(adapter, own):
            for path, rule in transform.rules(entry, numbers).items():
                nested[path] = _nest(path, nested[path], rule) if path in nested else rule
        return nested

    def rest(params: Any, adapter: Adapter, own: Any) -> Any:
        acted_on: set[str] = set()
        for transform, entry, numbers in parts(adapter, own):
            left = transform.remaining(params, entry, numbers)
            _check_taken_first(acted_on, params, left)
            acted_on |= set(transform.rules(entry, numbers))
            params = left
        rules(adapter, own)  # A chain that cannot be nested is refused here, before it trains.
        return params

    of_parts = any(transform.rest is not None for _, transform in members)
    return PeftTransform(start, rules, own_of, rest if of_parts else None)


def _check_taken_first(acted_on: set[str], params: Any, left: Any) -> None:
    """Raises `ValueError` where a method takes a part of a leaf that an earlier one acts on."""
    before, after = paths.slots(params), paths.slots(left)
    for path in acted_on & set(before):
        if after[path] is not before[path]:
            raise ValueError(
                f'a transform starts from a part of {path!r}, which an earlier one of the chain '
                'acts on already; put it first in the chain'
            )


def _nest(path: str, inner: Rule, outer: Rule) -> Rule:
    """The rule that applies `outer` to what `inner` leaves."""
    if isinstance(outer, MatrixRule) and outer.before is not None:  # of a chain inside of the chain
        first = _nest(path, inner, outer.before)
        return _nest(path, first, dataclasses.replace(outer, before=None))
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
        raise ValueError(
            f'a transform replaces {path!r} as a whole after another has adapted it, which would '
            'lose the adaptation; put select or full (or materialize=True) first in the chain'
        )
    return LeafRule(lambda leaf: outer.replace(_in_dtype(inner, leaf)), inner.keeps)


def _in_dtype(rule: LeafRule, leaf: Any) -> jax.Array:
    return rule.replace(leaf).astype(leaf.dtype)


def _nest_matrix(path: str, inner: MatrixRule, outer: MatrixRule) -> MatrixRule:
    inner_merge, outer_merge = inner.merge, outer.merge
    if inner_merge is None:
        raise ValueError(
            f'a transform acts on {path!r} after one for which no matrix stands (gated); put that '
            'one last in the chain'
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
