"""Trees and tables as text that fits a screen: repeated layers in one line, no values of arrays."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.holes import is_hole
from peftjax.core.quantized import is_quantized

MOST_LINES = 40
WIDTH = 100
_NUMBER = re.compile(r'(?:(?<=_)|(?<=/)|^)\d+(?=/|$)')


def fold(rows: Iterable[tuple[str, ...]]) -> list[tuple[int, tuple[str, ...]]]:
    """Merges rows whose paths differ only in numbers; the merged row shows the range.

    Args:
      rows: the first cell of each is a path.

    Returns:
      `(how many rows, the row)`, in the order in which the rows first came.

    >>> fold([('layers_0/w', '(2, 3)'), ('layers_1/w', '(2, 3)'), ('out', '(3,)')])
    [(2, ('layers_0..1/w', '(2, 3)')), (1, ('out', '(3,)'))]
    """
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault((_NUMBER.sub('#', row[0]), *row[1:]), []).append(row)
    return [folded for key, members in groups.items() for folded in _folded(key, members)]


def _folded(
    key: tuple[str, ...], members: list[tuple[str, ...]]
) -> list[tuple[int, tuple[str, ...]]]:
    places = [sorted(set(each)) for each in zip(*map(_numbers, members), strict=True)]
    count = 1
    for numbers in places:
        count *= len(numbers)
    if count != len(members):  # For example experts in some layers only: a range would be wrong.
        return [(1, row) for row in members]
    ranges = iter(map(_range, places))
    path = re.sub('#', lambda match: next(ranges), key[0])
    return [(len(members), (path, *key[1:]))]


def _numbers(row: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBER.findall(row[0]))


def _range(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 1 and len(numbers) == last - first + 1:
        return f'{first}..{last}'
    return ','.join(map(str, numbers))


def told(leaf: Any) -> str:
    """A leaf in a few words: the shape and dtype of an array, and never its values."""
    if hasattr(leaf, 'shape') and hasattr(leaf, 'dtype') and not is_hole(leaf):
        return repr(leaf) if is_quantized(leaf) else f'{tuple(leaf.shape)} {leaf.dtype}'
    text = repr(leaf)
    return text if len(text) <= WIDTH // 2 else type(leaf).__name__


class _Text(str):
    def __repr__(self) -> str:
        return str(self)


def told_argument(value: Any) -> str:
    """An argument of a method as Python prints it, with its arrays shortened."""
    count = sum(bool(getattr(leaf, 'shape', ())) for leaf in jax.tree.leaves(value))
    if not count:
        return repr(value)
    text = repr(jax.tree.map(lambda leaf: _Text(told(leaf)), value))
    return text if len(text) <= WIDTH // 2 else f'<{count} arrays>'


def outline(tree: Any, most: int = MOST_LINES) -> list[str]:
    """One line for each leaf of `tree`, at most `most` lines; repeated layers share a line."""
    rows = fold((path, told(leaf)) for path, leaf in paths.slots(tree).items())
    shown = rows if len(rows) <= most else rows[: most - 1]
    width = max((len(row[0]) for _, row in shown), default=0)
    lines = [f'{row[0].ljust(width)}  {times(count, row[1])}' for count, row in shown]
    return lines + ([f'... and {len(rows) - len(shown)} more'] if len(shown) < len(rows) else [])


def times(count: int, text: str) -> str:
    """A cell of a folded row that says how many rows it stands for."""
    return text if count == 1 else f'{count} x {text}'


def under(heading: str, lines: Iterable[str]) -> str:
    """Lines below a heading."""
    return heading + ''.join(f'\n  {line}' for line in lines)


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of text in columns of equal width, the first one underlined."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])
