"""Composition: several methods as one transform. Only this file decides the nesting."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.entries import Adapter, found_in
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.nest import nest
from peftjax.core.rules import ROOT, CallRule, LeafRule, Rule
from peftjax.core.transform import About, PeftTransform


def chain(*transforms: PeftTransform) -> PeftTransform:
    """Applies transforms from left to right: each acts on the result of those before it.

    Args:
      *transforms: the methods, for example `lora(...)` and `select(...)`.

    Returns:
      A transform whose adapter is a tuple with one entry for each of `transforms`; so is
      `frozen.own`.

    Raises:
      TypeError: an argument is no transform.
      ValueError: from `init`, if a transform replaces a leaf that an earlier one adapts, if it
        follows a gated transform on the same leaf, or if two transforms add virtual tokens.
      AdapterError: from `merge` and at a call, if the adapter is not such a tuple.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.chain(peftjax.lora(rank=2, targets=r'hidden'), peftjax.select(r'.*/bias'))
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> len(adapter)
    2
    """
    _check_members(transforms, 'chain(first, second)')

    def unpack(adapter: Adapter) -> tuple[Adapter, ...]:
        # Some checkpoint formats turn a tuple into a list.
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
            f'argument {number} is a {type(each).__name__}, not a transform; write {form} with '
            'transforms such as peftjax.lora(...)'
        )


_LEAVE_OUT = 'leave that leaf out of the targets of one of them'


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
                f'the chain has {len(members)} transforms, but the adapter {len(entries)} parts; '
                'init of this chain makes one for each'
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
                nested[path] = nest(path, nested[path], rule) if path in nested else rule
        _check_ids(nested)
        return nested

    def rest(params: Any, adapter: Adapter, own: Any) -> Any:
        nested: dict[str, Rule] = {}
        taken: set[str] = set()
        for transform, entry, numbers in parts(adapter, own):
            left = transform.remaining(params, entry, numbers)
            mine = transform.rules(entry, numbers)
            now = _changed(params, left)
            for path in now & set(nested):
                _refuse(path, nested[path], mine.get(path), path in taken)
            taken |= now
            # A chain that cannot be nested is refused here, before it trains.
            for path, rule in mine.items():
                nested[path] = _nested(path, nested.get(path), rule, path in taken)
            params = left
        _check_ids(nested)
        return params

    of_parts = any(transform.rest is not None for _, transform in members)
    return PeftTransform(start, rules, own_of, rest if of_parts else None)


def _check_ids(rules: Mapping[str, Rule]) -> None:
    """Raises `ValueError` where virtual tokens stand among ids that a rule reads."""
    root = rules.get(ROOT)
    reading = [path for path, rule in rules.items() if getattr(rule, 'reads_ids', False)]
    if reading and isinstance(root, CallRule) and root.virtual_tokens:
        raise ValueError(
            f'the method at {reading[0]!r} reads token ids, but another method of the chain adds '
            f'{root.virtual_tokens} virtual tokens; leave one of the two out'
        )


def _changed(before: Any, after: Any) -> set[str]:
    """The leaves of which a transform took a part, or the whole."""
    slots = paths.slots(after)
    return {path for path, leaf in paths.slots(before).items() if slots[path] is not leaf}


def _refuse(path: str, first: Rule, second: Rule | None, taken: bool) -> None:
    """Raises `ValueError`: `second` takes a part of a leaf, or all of it, that `first` acts on.

    Args:
      taken: whether `first` took a part of the leaf too.
    """
    instead = _LEAVE_OUT
    if second is not None and not taken and _nests(path, second, first):
        instead = 'put the later of the two in front of the other'
    takes = 'trains' if isinstance(second, LeafRule) else 'starts from a part of'
    raise ValueError(
        f'a transform {takes} {path!r}, on which an earlier transform of the chain acts; {instead}'
    )


def _nested(path: str, first: Rule | None, second: Rule, taken: bool) -> Rule:
    """`nest`; where a part of the leaf is taken, its advice to change the order is of no use."""
    if first is None:
        return second
    if taken and not _nests(path, first, second):
        raise ValueError(f'two transforms of the chain cannot share {path!r}; {_LEAVE_OUT}')
    return nest(path, first, second)


def _nests(path: str, first: Rule, second: Rule) -> bool:
    try:
        nest(path, first, second)
    except ValueError:
        return False
    return True
