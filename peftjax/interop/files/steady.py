"""Reading a folder that another process may put another in place of."""

import pathlib
import time
from collections.abc import Callable
from typing import TypeVar

from peftjax.interop.errors import CheckpointError

T = TypeVar('T')

_TRIES = 200


def steadily(folder: pathlib.Path, read: Callable[[], T]) -> T:
    """What `read` makes of a folder that a writer may replace meanwhile: of one version of it.

    read: opens all that it needs of the folder; it is called again where the folder was replaced.

    Raises:
        CheckpointError: the folder is replaced again and again. What `read` raises on a folder that
            stays.
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
