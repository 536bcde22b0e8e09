"""Composition: several methods as one transform. Only this file decides the nesting."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.base import (
    About,
    Adapter,
    AdapterError,
    CallRule,
    Model,
    ModelCall,
    ModuleRule,
    ModuleUse,
    PeftTransform,
    Rule,
    Use,
    WeightRule,
)


def chain(*transforms: PeftTransform) -> PeftTransform:
    """Applies transforms from left to right: each acts on what those before it left.

    In weights, `chain(a, b).merge(params, (x, y)) == b.merge(a.merge(params, x), y)`.

    Args:
      *transforms: the methods, for example `lora(...)` and `select(...)`.

    Returns:
      A transform whose adapter is a tuple with one entry for each of `transforms`.

    Raises:
      ValueError: from `init`, if one replaces a leaf that an earlier one adapts, follows a gated
        one on a leaf, or if two add virtual tokens.
      AdapterError: from `merge` and at a call, if the adapter is not such a tuple.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.chain(peftjax.lora(rank=2, targets=r'hidden'), peftjax.select(r'.*/bias'))
    >>> len(tx.init(jax.random.key(0), mlp))
    2
    """

    def unpack(adapter: Adapter) -> tuple[Adapter, ...]:
        # A list is what a tuple becomes in some checkpoint formats.
        if not isinstance(adapter, (tuple, list)):
            raise AdapterError(
                f'a chain takes a tuple with an adapter for each of its {len(transforms)} '
                f'transforms, found a {type(adapter).__name__}; init of this chain makes one'
            )
        return tuple(adapter)

    combined = _combined(
        {str(i): transform for i, transform in enumerate(transforms)}, tuple, unpack
    )
    return combined._replace(about=About('chain', {'transforms': transforms}))


def named_chain(transforms: Mapping[str, PeftTransform]) -> PeftTransform:
    """`chain` with names: the adapter is a dict with the names of `transforms`.

    The mapping's own order is the order of application.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.named_chain({'lora': peftjax.lora(rank=2, targets=r'hidden'),
    ...                           'bias': peftjax.select(r'.*/bias')})
    >>> sorted(tx.init(jax.random.key(0), mlp))
    ['bias', 'lora']
    """
    names = tuple(transforms)

    def pack(parts: list[Adapter]) -> dict[str, Adapter]:
        return dict(zip(names, parts, strict=True))

    def unpack(adapter: dict[str, Adapter]) -> tuple[Adapter, ...]:
        found = sorted(adapter) if isinstance(adapter, Mapping) else type(adapter).__name__
        if found != sorted(names):
            raise AdapterError(
                f'the chain takes a dict with the parts {sorted(names)}, found {found}; init of '
                'this chain makes one'
            )
        return tuple(adapter[name] for name in names)

    combined = _combined(transforms, pack, unpack)
    return combined._replace(about=About('named_chain', {'transforms': transforms}))


def _combined(transforms: Mapping[str, PeftTransform], pack: Any, unpack: Any) -> PeftTransform:
    members = tuple(transforms.items())

    def parts(adapter: Adapter) -> tuple[Adapter, ...]:
        entries = unpack(adapter)
        if len(entries) != len(members):
            raise AdapterError(
                f'the chain has {len(members)} transforms, the adapter {len(entries)} parts; init '
                'of this chain makes one for each'
            )
        return entries

    def init(key: jax.Array, model: Model) -> Adapter:
        adapter = pack(
            [transform.init(paths.fold_in(key, name), model) for name, transform in members]
        )
        rules(adapter)  # A chain that cannot be nested is refused here, before it trains.
        return adapter

    def merge(params: Any, adapter: Adapter) -> Any:
        for (_, transform), entry in zip(members, parts(adapter), strict=True):
            params = transform.merge(params, entry)
        return params

    def rules(adapter: Adapter) -> dict[str, Rule]:
        nested: dict[str, Rule] = {}
        for (_, transform), entry in zip(members, parts(adapter), strict=True):
            for path, rule in transform.rules(entry).items():
                nested[path] = _nest(path, nested[path], rule) if path in nested else rule
        return nested

    def base(params: Any, adapter: Adapter) -> Any:
        for (_, transform), entry in zip(members, parts(adapter), strict=True):
            params = transform.base(params, entry)
        return params

    return PeftTransform(init, merge, rules, base)


def _nest(path: str, inner: Rule, outer: Rule) -> Rule:
    """The rule that applies `outer` to what `inner` leaves."""
    if isinstance(inner, WeightRule) and isinstance(outer, WeightRule):
        return _nest_weight(path, inner, outer)
    if isinstance(inner, ModuleRule) and isinstance(outer, ModuleRule):
        return _nest_module(inner, outer)
    if isinstance(inner, CallRule) and isinstance(outer, CallRule):
        return _nest_call(inner, outer)
    raise ValueError(f'{path!r} names both a weight and a module; rename one of them')


def _nest_weight(path: str, inner: WeightRule, outer: WeightRule) -> WeightRule:
    if outer.replaces or (outer.base is not None and inner.layout is not None):
        raise ValueError(
            f'a transform replaces {path!r} as a whole after another has adapted it, which would '
            'lose the adaptation; put select or full (or materialize=True) first in the chain'
        )
    if outer.base is not None:
        first, second = inner.base, outer.base
        base = second if first is None else lambda leaf: second(first(leaf))
        return dataclasses.replace(inner, base=base)

    inner_merged, outer_merged = inner.merged, outer.merged
    if inner_merged is None:
        raise ValueError(
            f'a transform acts on {path!r} after one for which no matrix stands (gated); put that '
            'one last in the chain'
        )

    def forward(leaves: Any, use: Use) -> jax.Array:
        inner_key, outer_key = (None, None) if use.key is None else jax.random.split(use.key)

        def base(x: jax.Array) -> jax.Array:
            return inner.forward(leaves[0], use.replace(x=x, key=inner_key))

        def weight() -> jax.Array:
            return inner_merged(leaves[0], use.weight())

        return outer.forward(leaves[1], use.replace(base=base, weight=weight, key=outer_key))

    def merged(leaves: Any, matrix: jax.Array) -> jax.Array:
        assert outer_merged is not None
        return outer_merged(leaves[1], inner_merged(leaves[0], matrix))

    def prepare(leaves: Any, matrix: jax.Array) -> Any:
        first, second = leaves
        if outer.prepare is not None:
            second = outer.prepare(second, inner_merged(first, matrix))
        if inner.prepare is not None:
            first = inner.prepare(first, matrix)
        return first, second

    prepared = inner.prepare is not None or outer.prepare is not None
    return WeightRule(
        (inner.leaves, outer.leaves),
        outer.layout,
        forward,
        None if outer_merged is None else merged,
        inner.base,
        inner.replaces,
        prepare if prepared else None,
    )


def _nest_module(inner: ModuleRule, outer: ModuleRule) -> ModuleRule:
    def forward(leaves: Any, use: ModuleUse) -> jax.Array:
        keys = (None, None) if use.key is None else jax.random.split(use.key)
        output = inner.forward(leaves[0], dataclasses.replace(use, key=keys[0]))
        return outer.forward(leaves[1], dataclasses.replace(use, output=output, key=keys[1]))

    def prepare(leaves: Any, params: Mapping[str, Any]) -> Any:
        return tuple(
            each if rule.prepare is None else rule.prepare(each, params)
            for rule, each in zip((inner, outer), leaves, strict=True)
        )

    prepared = inner.prepare is not None or outer.prepare is not None
    return ModuleRule((inner.leaves, outer.leaves), forward, prepare if prepared else None)


def _nest_call(inner: CallRule, outer: CallRule) -> CallRule:
    if inner.virtual_tokens and outer.virtual_tokens:
        raise ValueError(
            f'two transforms of the chain add virtual tokens ({inner.virtual_tokens} and '
            f'{outer.virtual_tokens}); write one with the sum of both'
        )

    def forward(leaves: Any, call: ModelCall) -> Any:
        keys = (None, None) if call.key is None else jax.random.split(call.key)

        def run(*args: Any, **keywords: Any) -> Any:
            return inner.forward(
                leaves[0], dataclasses.replace(call, args=args, keywords=keywords, key=keys[0])
            )

        return outer.forward(leaves[1], dataclasses.replace(call, key=keys[1], run=run))

    return CallRule(
        (inner.leaves, outer.leaves), forward, inner.virtual_tokens + outer.virtual_tokens
    )
