"""Tables as text and as Markdown, and the generated sections of benchmarks/README.md."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

README = Path(__file__).parent / 'README.md'


def plain(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal; the first row is the header, text left and numbers right.

    Example:
        >>> print(plain([('method', 'n'), ('full', '12')]))
        method   n
        full    12
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return '\n'.join(line.rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown.

    Example:
        >>> print(markdown([('method', 'n'), ('full', '12')]))
        | method | n |
        |:--|--:|
        | full | 12 |
    """
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    rule = '|:--|' + '--:|' * (len(rows[0]) - 1)
    return '\n'.join([lines[0], rule, *lines[1:]])


def versions(*packages: str) -> str:
    """One line with the versions of Python and of the packages, and the number of usable cores.

    Raises:
        importlib.metadata.PackageNotFoundError: a package is not installed.
    """
    found = [f'{name} {importlib.metadata.version(name)}' for name in packages]
    cores = len(os.sched_getaffinity(0))
    return ', '.join([f'Python {platform.python_version()}', *found, f'{cores} CPU cores'])


def write_section(name: str, text: str, path: Path = README) -> None:
    """Replaces the text between the two comments of section `name`.

    Raises:
        ValueError: the file has no such section.
    """
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    page = path.read_text()
    pattern = re.compile(re.escape(begin) + '.*?' + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f'{path} lacks the section {begin} ... {end}; add the two comments')
    path.write_text(pattern.sub(lambda _: f'{begin}\n{text.strip()}\n{end}', page))
