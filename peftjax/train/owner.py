"""A work folder belongs to one process at a time."""

import contextlib
import datetime
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from peftjax.train.files import write_whole

_LOCK, _OWNER = '.lock', '.owner.json'


class OwnedError(ValueError):
    """Another process works in a folder."""


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Locks a work folder while the context is open, and makes it if it does not exist.

    The lock is one of the operating system, so it is released however its holder ends. A folder
    that was made here is removed if nothing was written into it.

    Raises:
        OwnedError: another process, or another run of this one, holds it; the message says which.

    Example:
        >>> folder = getfixture('tmp_path') / 'run'
        >>> with owned(folder):
        ...     with owned(folder):
        ...         pass
        Traceback (most recent call last):
        peftjax.train.owner.OwnedError: ... is in use by process ...
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise _in_use(folder) from None
    if not (folder / _LOCK).exists():  # Its holder removed the folder in the meantime.
        lock.release()
        raise _in_use(folder)
    try:
        about = {
            'process': os.getpid(),
            'host': socket.gethostname(),
            'since': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'command': ' '.join(sys.argv)[:500],
        }
        write_whole(folder / _OWNER, json.dumps(about, indent=2) + '\n')
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / _OWNER).unlink()
            if made and [path.name for path in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
                folder.rmdir()
        lock.release()


def _in_use(folder: Path) -> OwnedError:
    return OwnedError(
        f'{folder} is in use by {_owner(folder)}: wait until it has ended, or choose another '
        '--workdir'
    )


def _owner(folder: Path) -> str:
    """Who holds a folder, in words."""
    try:
        about = json.loads((folder / _OWNER).read_text(encoding='utf-8'))
        return 'process {process} on {host} since {since} ({command})'.format_map(about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 'another process'
