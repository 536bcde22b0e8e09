"""Files and folders that are whole or not there.

A writer works in its own folder beside the target. The result is flushed to disk, and takes the
target's place in one rename. An older folder is exchanged with the new one, so that at every moment
the name stands for the older or for the newer version. A process that is killed leaves its working
folder, which the next save to the same target removes.
"""

import contextlib
import errno
import fcntl
import glob
import os
import pathlib
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import safetensors
from safetensors.numpy import save_file

from peftjax.interop.files.disk import flush, flush_one, permit_alike
from peftjax.interop.files.exchange import NEW, OLD, NotMovedError, give_back, take_place

_STALE = 60.0  # seconds after which a working folder without a lock counts as abandoned


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives the path of a file to write, which takes the place of `path` when the block ends.

    If the block raises, `path` is left as it was. A link at `path` is replaced, not followed. The
    new file has the permissions of the one that it replaces.

    Raises:
        OSError: the file cannot be written, or `path` is a folder, a device or a pipe.

    Example:
        >>> folder = getfixture('tmp_path')
        >>> with new_file(folder / 'a.txt') as new:
        ...     _ = new.write_text('whole')
        >>> [each.name for each in folder.iterdir()], (folder / 'a.txt').read_text()
        (['a.txt'], 'whole')
    """
    given = pathlib.Path(path)
    target = given.parent.resolve() / given.name
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, 'is not a regular file; write another path', str(given))
    with _beside(target) as place:
        new = place / target.name
        yield new
        flush(new)
        permit_alike(new, target)
        os.replace(new, target)
        flush_one(target.parent)


@contextlib.contextmanager
def new_folder(
    folder: str | os.PathLike[str], own: Callable[[str], bool]
) -> Iterator[pathlib.Path]:
    """Gives an empty folder for files, which takes the place of `folder` when the block ends.

    If the block raises, `folder` is left as it was. Links in `folder` are not followed. The new
    folder and its files have the permissions of those that they replace, by name. Everything else
    in the folder stays: other files are in both versions, even if another process changes them
    meanwhile, and folders in it move right after the exchange.

    Args:
        folder: the folder to make or replace.
        own: tells whether a name in `folder` belongs to the writer; older files of these names are
            removed with the older folder.

    Raises:
        OSError: the folder cannot be written, or is a file, the working folder of this process, or
            a folder that this process may not write to.

    Example:
        >>> folder = getfixture('tmp_path') / 'adapter'
        >>> with new_folder(folder, {'a.txt'}.__contains__) as new:
        ...     _ = (new / 'a.txt').write_text('whole')
        >>> [each.name for each in folder.iterdir()]
        ['a.txt']
    """
    target = pathlib.Path(folder).resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if target.exists() and target.samefile(pathlib.Path.cwd()):
        raise OSError(errno.EBUSY, 'is the current folder; write to one inside it', str(folder))
    if target.exists() and not os.access(target, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    with _beside(target) as place:
        new = place / NEW
        new.mkdir()
        yield new
        flush(new)
        take_place(new, target, own)
        flush_one(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text, and reads it back.

    Raises:
        OSError: the text cannot be written, or differs when it is read back.
    """
    file = pathlib.Path(path)
    with file.open('x', encoding='utf-8', newline='') as stream:
        stream.write(text)
    flush(file)
    if file.read_bytes() != text.encode():
        raise _other(file)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes contiguous arrays to a new safetensors file, and reads them back.

    The file has the permissions of any new file of the process.

    Raises:
        OSError: the arrays cannot be written, for example on a full disk, or differ when they are
            read back.
    """
    file = pathlib.Path(path)
    with file.open('xb') as empty:  # The library makes files that only their owner can read.
        mode = stat.S_IMODE(os.fstat(empty.fileno()).st_mode)
    try:
        save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
        file.chmod(mode)
        flush(file)
        with safetensors.safe_open(file, framework='numpy') as stored:
            same = set(stored.keys()) == set(tensors) and all(
                same_bytes(stored.get_tensor(name), value) for name, value in tensors.items()
            )
    except safetensors.SafetensorError as error:
        raise OSError(errno.EIO, f'cannot be written: {error}', str(file)) from error
    if not same:
        raise _other(file)


def same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays have the same shape, dtype and bits."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    first, second = (np.ascontiguousarray(each).reshape(-1) for each in (one, other))
    return np.array_equal(first.view(np.uint8), second.view(np.uint8))


def _other(file: pathlib.Path) -> OSError:
    return OSError(errno.EIO, 'has other bytes than were written to it', str(file))


@contextlib.contextmanager
def _beside(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder of this process beside the target, locked; it is removed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear(target)
    place = target.parent / f'{_prefix(target)}{secrets.token_hex(8)}.new'
    place.mkdir(mode=0o700)  # A file that replaces a private one must not be readable here either.
    handle = os.open(place, os.O_RDONLY)
    removed = True
    try:
        _lock(handle)
        yield place
    except NotMovedError:
        removed = False
        raise
    except OSError as error:
        elsewhere = error.filename is not None and place.name not in str(error.filename)
        if elsewhere or error.errno is None:
            raise
        # The path that the caller gave says more than that of the working folder.
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        if removed:
            with contextlib.suppress(OSError):
                _remove(place, target)
        os.close(handle)


def _prefix(target: pathlib.Path) -> str:
    return f'.{target.name[:100]}.'


def _lock(handle: int) -> bool:
    """Locks a folder for as long as `handle` is open; False if another process has the lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # Another process has it, or the file system has no locks.
        return False
    return True


def _clear(target: pathlib.Path) -> None:
    """Removes working folders of killed processes, and moves back what does not belong to them."""
    for place in target.parent.glob(f'{glob.escape(_prefix(target))}{"[0-9a-f]" * 16}.new'):
        with contextlib.suppress(OSError):
            if place.is_symlink() or time.time() - place.stat().st_mtime < _STALE:
                continue
            handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if not _lock(handle):
                    continue
                _remove(place, target)
            finally:
                os.close(handle)


def _remove(place: pathlib.Path, target: pathlib.Path) -> None:
    """Removes a working folder; an older version, and folders in it, go back to the target."""
    if not target.exists() and (place / OLD).is_dir():
        (place / OLD).rename(target)
    for version in (NEW, OLD):
        if target.is_dir() and (place / version).is_dir():
            give_back(place / version, target, lambda each: not each.is_dir() or each.is_symlink())
    shutil.rmtree(place, ignore_errors=True)
