"""Composition: several methods as one transform. Only this file decides the nesting."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.entries import Adapter, found_in
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.nest import OrderError, nest
from peftjax.core.rules import ROOT, CallRule, Rule
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
        nesting = _Nesting()
        for transform, entry, numbers in parts(adapter, own):
            for path, rule in transform.rules(entry, numbers).items():
                nesting.add(path, rule, takes=False)
        _check_ids(nesting.nested)
        return nesting.nested

    def rest(params: Any, adapter: Adapter, own: Any) -> Any:
        nesting = _Nesting()
        for transform, entry, numbers in parts(adapter, own):
            left = transform.remaining(params, entry, numbers)
            taken = _changed(params, left)
            mine = transform.rules(entry, numbers)
            # A chain that cannot be nested is refused here, before it trains.
            for path in dict.fromkeys([*mine, *taken]):
                nesting.add(path, mine.get(path), takes=path in taken)
            params = left
        _check_ids(nesting.nested)
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
    """The leaves that a transform took out of the frozen parameters, or a part of them."""
    slots = paths.slots(after)
    return {path for path, leaf in paths.slots(before).items() if slots[path] is not leaf}


# A rule, if there is one, and whether its transform takes the leaf or a part of it.
_InTurn = tuple[Rule | None, bool]


class _Nesting:
    """The rules of a chain, nested in turn at each path.

    Attributes:
      nested: the one rule at each path.
    """

    def __init__(self) -> None:
        self.nested: dict[str, Rule] = {}
        self._in_turn: dict[str, list[_InTurn]] = {}

    def add(self, path: str, rule: Rule | None, takes: bool) -> None:
        """Adds the next rule at `path`.

        Args:
          path: of a leaf or a module.
          rule: of a transform; None for one that takes the leaf and does not act on it.
          takes: whether the transform takes the leaf, or a part of it, out of what is frozen.

        Raises:
          ValueError: the rule cannot act after those before it; says whether it can act earlier.
        """
        before = self._in_turn.setdefault(path, [])
        try:
            if takes and before:
                raise OrderError(
                    f'a transform takes {path!r}, or a part of it, out of the frozen parameters '
                    'after an earlier transform of the chain has adapted it'
                )
            if rule is not None:
                first = self.nested.get(path)
                self.nested[path] = rule if first is None else nest(path, first, rule)
        except OrderError as error:
            raise ValueError(f'{error}; {_advice(path, before, (rule, takes))}') from None
        before.append((rule, takes))


def _advice(path: str, before: list[_InTurn], last: _InTurn) -> str:
    for place in range(len(before)):
        order = [*before[:place], last, *before[place:]]
        rules = [rule for rule, _ in order if rule is not None]
        if not any(takes for _, takes in order[1:]) and _nests(path, rules):
            return 'write the later one earlier in the chain'
    return 'leave that leaf out of the targets of one of them'


def _nests(path: str, rules: list[Rule]) -> bool:
    try:
        functools.reduce(lambda inner, outer: nest(path, inner, outer), rules)
    except ValueError:
        return False
    return True
