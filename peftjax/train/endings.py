"""How a program that trains ends: done, stopped as asked, or with a plain reason."""

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
    """Turns what may come of the inside into a line for people, and an exit status.

    A stop on request ends with 0. Checkpoints that fail, a loss that is no number, errors of the
    system and `also` end with their text.

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
    # What a failed save leaves unfinished goes now: most of it would complain after the reason.
    gc.collect()
    sys.exit(readable(f'stopped: {reason}'))
