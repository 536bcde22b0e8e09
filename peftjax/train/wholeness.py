"""Digests and comparisons that tell whether a checkpoint is whole, and of which run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Settings that may change between save and restore: the mesh, and the date in chat templates, since
# the rows that they write are compared themselves.
MAY_CHANGE = frozenset({'mesh', 'data.today'})


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """The differences between two nested configs, one text `name: old -> new` for each field.

    The fields in `MAY_CHANGE` are left out.

    Example:
        >>> differences({'a': {'b': 1}, 'c': 2}, {'a': {'b': 3}, 'c': 2})
        ['a.b: 1 -> 3']
    """
    found = []
    for name in sorted(old.keys() | new.keys()):
        if f'{prefix}{name}' in MAY_CHANGE:
            continue
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f'{prefix}{name}.')
        elif before != after:
            found.append(f'{prefix}{name}: {before!r} -> {after!r}')
    return found


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))


def beside(config: Any, about: Any, marks: Any) -> str:
    """A digest of what a checkpoint holds beside its arrays."""
    text = json.dumps([config, about, marks], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest(config: Any, about: Any, marks: Any, state: str) -> dict[str, str]:
    """Digests of a whole checkpoint, and of all but its arrays, to check before these are read."""
    first = beside(config, about, marks)
    return {'beside': first, 'all': hashlib.sha256((first + state).encode()).hexdigest()}


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def passing(error: BaseException | None) -> str | None:
    """The text of a system error that is not the files' fault; None if there was none."""
    while error is not None:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and not absent):
            return first_line(error)
        error = error.__cause__ or error.__context__
    return None


def unreadable(folder: Path) -> str | None:
    """The system's error for the first file of a folder that it cannot read; None if it can."""
    try:
        for path in sorted(folder.rglob('*')):
            if path.is_file():
                with path.open('rb') as file:
                    while file.read(2**20):
                        pass
    except OSError as error:
        return f'{error.filename}: {error.strerror}'
    return None
