"""Reads a folder that another process may replace meanwhile."""

import pathlib
import time
from collections.abc import Callable
from typing import TypeVar

from peftjax.interop.errors import CheckpointError

T = TypeVar('T')

_TRIES = 200


def steadily(folder: pathlib.Path, read: Callable[[], T]) -> T:
    """The result of `read`, all of it from one version of a folder that may be replaced meanwhile.

    read: opens all that it needs of the folder; it is called again if the folder was replaced.

    Raises:
        CheckpointError: the folder is replaced again and again. Errors of `read` are raised if the
            folder was not replaced.
    """
    for number in range(_TRIES):
        before = _identity(folder)
        try:
            found = read()
        except (OSError, ValueError):
            if before is not None and _identity(folder) == before:
                raise
            if before is None and number > 3:
                raise
        else:
            if _identity(folder) == before:
                return found
        time.sleep(0.001 * min(number, 20))
    raise CheckpointError(f'{folder} was replaced {_TRIES} times while it was read')


def _identity(folder: pathlib.Path) -> tuple[int, ...] | None:
    try:
        about = folder.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_mtime_ns
