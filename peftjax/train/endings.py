"""How a training command ends: done, stopped on request, or with the reason in one line."""

import contextlib
import gc
import sys
from collections.abc import Iterator

from peftjax.train.checkpoints import CheckpointsError
from peftjax.train.files import readable
from peftjax.train.interrupt import Interrupted
from peftjax.train.window import NonFiniteError


@contextlib.contextmanager
def plain_endings(*also: type[Exception]) -> Iterator[None]:
    """Turns the expected exceptions of a block into a line for people and an exit status.

    A stop on request ends with status 0. Failed checkpoints, a loss that is not finite, errors of
    the operating system and the exceptions in `also` end with their text and status 1.

    Example:
        >>> with plain_endings(ValueError):
        ...     raise ValueError('no such row')
        Traceback (most recent call last):
        SystemExit: stopped: no such row
    """
    try:
        yield
        return
    except Interrupted as at:
        print(f'stopped after {at}, as asked; the same command goes on from there')
        return
    except (NonFiniteError, CheckpointsError, OSError, *also) as error:
        reason = str(error)
    # Collects what a failed save left unfinished: otherwise it would print after the reason.
    gc.collect()
    sys.exit(readable(f'stopped: {reason}'))
