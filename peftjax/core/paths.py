"""Paths into parameter trees, and the regular expressions that select among them."""

import difflib
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from peftjax.core.holes import is_hole
from peftjax.core.quantized import is_quantized

Targets = str | tuple[str, ...]
"""One regular expression, or several of which any may match; always a full match of a path."""


class TargetError(ValueError):
    """A target pattern that matches nothing, or something its method cannot act on."""


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of `tree` by `/`-joined path, in the tree's own order; a quantised one is a leaf.

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


def patterns_of(targets: Targets) -> tuple[re.Pattern[str], ...]:
    """Compiled patterns, with an error that shows the pattern where one does not compile."""
    compiled = []
    given = (targets,) if isinstance(targets, str) else targets
    if not isinstance(given, (tuple, list)) or not all(isinstance(each, str) for each in given):
        raise TargetError(
            f'targets is {targets!r}; write a regular expression or a tuple of them, for example '
            "targets=r'.*/(query|value)'"
        )
    for pattern in given:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise TargetError(
                f'target {pattern!r} is not a regular expression: {error}; '
                "write for example r'.*/(query|value)'"
            ) from error
    if not compiled:
        raise TargetError("targets is empty; write for example targets=r'.*/(query|value)'")
    return tuple(compiled)


def matches(patterns: Iterable[re.Pattern[str]], path: str) -> bool:
    """Whether any of the patterns fully matches `path` or its module."""
    return any(p.fullmatch(path) or p.fullmatch(parent(path)) for p in patterns)


def first_match(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Value of the first pattern that fully matches `path` or its module, else `default`."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(pattern, path) or re.fullmatch(pattern, parent(path)):
            return value
    return default


def near_names(pattern: str, names: Iterable[str], most: int = 5) -> list[str]:
    """The names that come closest to what `pattern` looks like, best first."""
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


def fold_in(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for `name`: adding a target leaves every other initial value alone."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
