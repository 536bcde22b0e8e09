"""Paths into parameter trees, and the patterns that select among them."""

import dataclasses
import difflib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

import jax

from peftjax.core.holes import is_hole
from peftjax.core.patterns import Matcher, matcher
from peftjax.core.quantized import is_quantized

Targets = Union[str, Sequence[Union[str, 'Selection']], 'Selection']
"""What a method acts on: see `targets`."""

ALL_LINEAR = 'all-linear'
"""The target that means every matrix of a model but embeddings and the head."""


class TargetError(ValueError):
    """A target pattern that matches nothing, or something its method cannot act on."""


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of `tree` by `/`-joined path, in the tree's order; a quantised array is one leaf.

    >>> flatten({'dense': {'kernel': 1, 'bias': 2}, 'blocks': [3]})
    {'blocks/0': 3, 'dense/bias': 2, 'dense/kernel': 1}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_quantized)
    return {join(path): leaf for path, leaf in leaves}


def slots(tree: Any) -> dict[str, Any]:
    """Leaves of `tree` by path, and the holes among them.

    >>> from peftjax.core.holes import Hole
    >>> slots({'kernel': 1, 'bias': Hole()})
    {'bias': Hole(), 'kernel': 1}
    """
    found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_slot)
    return {join(path): leaf for path, leaf in found}


def _is_slot(node: Any) -> bool:
    return is_quantized(node) or is_hole(node)


def join(path: tuple[Any, ...]) -> str:
    """One key path of `jax.tree_util` as a `/`-joined string."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def replace(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """`tree` with the leaves (or holes) at the given paths replaced.

    Raises:
      KeyError: for a path that `tree` does not have.

    >>> replace({'a': 1, 'b': {'c': 2}}, {'b/c': 3})
    {'a': 1, 'b': {'c': 3}}
    """
    unknown = set(leaves) - set(slots(tree))
    if unknown:
        raise KeyError(f'no such leaf in the tree: {sorted(unknown)}')
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves.get(join(path), leaf), tree, is_leaf=_is_slot
    )


def parent(path: str) -> str:
    """The module that owns a leaf: its path without the last name."""
    return path.rpartition('/')[0]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Targets with exceptions; `targets` makes it and says what the fields mean."""

    patterns: Targets
    exclude: Targets = ()
    expect: int | None = None

    def __post_init__(self) -> None:
        for name in ('patterns', 'exclude'):
            value = getattr(self, name)
            if isinstance(value, list):  # A frozen value is hashable.
                object.__setattr__(self, name, tuple(value))
        entries_of(self.patterns)
        if self.exclude != ():
            entries_of(self.exclude)
        if self.expect is not None and (not isinstance(self.expect, int) or self.expect < 1):
            raise TargetError(
                f'expect is {self.expect!r}; write how many leaves (or modules) must match, '
                'a whole number of at least 1'
            )

    def __repr__(self) -> str:
        exclude = '' if self.exclude == () else f', exclude={self.exclude!r}'
        expect = '' if self.expect is None else f', expect={self.expect}'
        return f'targets({self.patterns!r}{exclude}{expect})'


def targets(patterns: Targets, *, exclude: Targets = (), expect: int | None = None) -> Selection:
    """Targets with exceptions, and with a check of their number.

    You can pass the result wherever a method takes `targets`.

    Args:
      patterns: One string is a regular expression that must match a whole path, of a leaf or of
        its module: `r'.*/(query|value)'`. In a list or tuple, each entry is such a regular
        expression, and an entry of letters, digits and underscores alone is the last part of a
        path: `['q_proj', 'v_proj']` means `r'(.*/)?(q_proj|v_proj)'`. `'all-linear'`, alone or in
        a list, means every matrix that the model multiplies by, without embeddings and without
        the head; see `peftjax.core.linear`.
      exclude: what to leave out, written in the same way.
      expect: how many leaves must remain (of methods on modules: how many modules). The stacked
        layers of a scanned model are one leaf.

    Returns:
      A value to pass as `targets`.

    Raises:
      TargetError: here, if a pattern is not a regular expression. From `init`, if an entry of
        `patterns` or `exclude` matches nothing in the model, if nothing remains, or if another
        number remains than expected.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=peftjax.targets(r'.*', exclude=['out'], expect=1))
    >>> tx.about.arguments['targets']
    targets('.*', exclude=('out',), expect=1)
    >>> list(tx.init(jax.random.key(0), mlp)[0])
    ['hidden/kernel']
    """
    return Selection(patterns, exclude, expect)


@dataclasses.dataclass(frozen=True)
class Pattern:
    """One entry of targets.

    Attributes:
      text: the entry as it was written.
      regex: what it means.
    """

    text: str
    regex: Matcher

    def matches(self, path: str) -> bool:
        """Whether it fully matches `path`."""
        return self.regex.fullmatch(path)


def entries_of(targets: Targets) -> tuple[Pattern | Selection, ...]:
    """The entries of targets. An entry that does not compile raises an error that shows it."""
    if isinstance(targets, Selection):
        return (targets,)
    if isinstance(targets, str):
        return (_pattern(targets, False),)
    if not isinstance(targets, (tuple, list)) or not all(
        isinstance(each, (str, Selection)) for each in targets
    ):
        raise TargetError(
            f'targets is {targets!r}; write a regular expression or a tuple of them, for example '
            "targets=r'.*/(query|value)', or names of modules, targets=['query', 'value']"
        )
    if not targets:
        raise TargetError("targets is empty; write for example targets=r'.*/(query|value)'")
    return tuple(each if isinstance(each, Selection) else _pattern(each, True) for each in targets)


def _pattern(text: str, listed: bool) -> Pattern:
    plain = listed and re.fullmatch(r'[A-Za-z0-9_]+', text)
    try:
        return Pattern(text, matcher(f'(?:.*/)?{text}' if plain else text))
    except re.error as error:
        raise TargetError(
            f'target {text!r} is not a regular expression: {error}; '
            "write for example r'.*/(query|value)'"
        ) from error


def exactly(names: Iterable[str]) -> tuple[str, ...]:
    """Targets that mean these paths and no others.

    >>> exactly(['hidden/kernel', 'w'])
    ('hidden/kernel', '(?:w)')
    """
    # The brackets keep a path of one part from being the last part of others.
    return tuple(re.escape(name) if '/' in name else f'(?:{re.escape(name)})' for name in names)


def choose(
    targets: Targets,
    names: Iterable[str],
    hits: Callable[[Pattern, str], bool],
    nothing: Callable[[Pattern], TargetError],
    known: Callable[[Pattern, str], bool] | None = None,
) -> dict[str, str]:
    """The names that `targets` mean, in the order of `names`, each with the entry that hit it.

    Args:
      targets: what is wanted.
      names: all there are.
      hits: whether an entry matches a name.
      nothing: the error for an entry that hits no name.
      known: whether an entry of `exclude` matches a name; `hits` by default.

    Raises:
      TargetError: an entry hits nothing, or the number is not the expected one.
    """
    names, chosen = list(names), {}
    for entry in entries_of(targets):
        if isinstance(entry, Selection):
            chosen |= _selected(entry, names, hits, nothing, known or hits)
            continue
        matched = [name for name in names if hits(entry, name)]
        if not matched:
            raise nothing(entry)
        chosen |= dict.fromkeys(matched, entry.text)
    return {name: chosen[name] for name in names if name in chosen}


def _selected(
    selection: Selection,
    names: list[str],
    hits: Callable[[Pattern, str], bool],
    nothing: Callable[[Pattern], TargetError],
    known: Callable[[Pattern, str], bool],
) -> dict[str, str]:
    found = choose(selection.patterns, names, hits, nothing, known)
    without = choose(selection.exclude, names, known, nothing) if selection.exclude != () else {}
    left = {name: text for name, text in found.items() if name not in without}
    if not left:
        raise TargetError(f'{selection!r} selects nothing: exclude removes all of {_some(found)}')
    if selection.expect not in (None, len(left)):
        raise TargetError(
            f'{selection!r} matches {len(left)} instead of {selection.expect}: {_some(left)}'
        )
    return left


def _some(names: Iterable[str], most: int = 40) -> str:
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return f'{names[:most]}{more}'


def choose_names(targets: Targets, names: Iterable[str], what: str) -> list[str]:
    """The names that `targets` mean, if only the names are known.

    Raises:
      TargetError: an entry matches no `what`.
    """
    names = list(names)

    def nothing(pattern: Pattern) -> TargetError:
        return TargetError(
            f'target {pattern.text!r} matches no {what}{nearby(pattern.text, names)}'
        )

    return list(choose(targets, names, Pattern.matches, nothing))


def first_match(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Value of the first pattern that fully matches `path` or its module, else `default`."""
    for pattern, value in (patterns or {}).items():
        found = matcher(pattern)
        if found.fullmatch(path) or found.fullmatch(parent(path)):
            return value
    return default


def near_names(pattern: str, names: Iterable[str], most: int = 5) -> list[str]:
    """The names that are most similar to `pattern`, best first."""
    plain = re.sub(r'[^\w/]+', '', pattern)
    last = plain.rpartition('/')[2]
    scored = {
        name: max(
            difflib.SequenceMatcher(None, plain, name).ratio(),
            max(difflib.SequenceMatcher(None, last, part).ratio() for part in name.split('/')),
        )
        for name in names
    }
    return sorted(scored, key=lambda name: (-scored[name], name))[:most]


def nearby(pattern: str, names: Iterable[str]) -> str:
    """The near names as the end of a sentence; empty if there are none."""
    near = near_names(pattern, names)
    return f'; near names: {near}' if near else ''


def fold_in(key: jax.Array, name: str) -> jax.Array:
    """A separate key for `name`: adding a target does not change other initial values."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
