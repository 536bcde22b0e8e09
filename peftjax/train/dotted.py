"""Finds your own functions by 'package.module:function', where ours have short names."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from peftjax.train.typed import SettingsError


def find_function(kind: str, path: str, known: Iterable[str]) -> Any:
    """The function that a path names.

    Args:
        kind: the kind of the function, for errors: 'task', 'metric', 'tracker'.
        path: 'package.module:function'.
        known: short names; an error suggests the nearest ones for a path without a colon.

    Raises:
        SettingsError: the path has no colon; its module or function does not exist.

    Example:
        >>> find_function('metric', 'math:hypot', ['f1'])(3.0, 4.0)
        5.0
        >>> find_function('metric', 'f2', ['f1'])
        Traceback (most recent call last):
        peftjax.train.typed.SettingsError: no metric 'f2'; near names: ['f1']; ...
    """
    module, colon, name = path.partition(':')
    if not colon:
        near = difflib.get_close_matches(path, list(known), n=3, cutoff=0)
        raise SettingsError(
            f'no {kind} {path!r}; near names: {near}; name your own as package.module:function'
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(f'{kind} {path!r} cannot be read: {error}') from None
    if not callable(found):
        raise SettingsError(f'{kind} {path!r} cannot be read: {name!r} is no function')
    return found
