"""Files and folders that are whole or not there.

A writer works in a folder of its own beside the target. What it made is flushed to disk, and takes
the target's place in one rename; a folder that is there already is exchanged with the new one, so
that at every moment the name stands for the older version or for the newer one. A process that is
killed leaves its working folder, which the next save to the same target removes.
"""

import contextlib
import ctypes
import errno
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

try:
    import fcntl
except ImportError:  # Windows, where the folder of a killed process stays.
    fcntl = None

_NEW, _OLD = 'new', 'old'
_STALE = 60.0  # seconds after which a working folder that nobody has locked belongs to nobody
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives the path of a file to write, which takes the place of `path` when the block ends.

    Where the block raises, `path` is left as it was. A link at `path` is replaced, not followed.

    Raises:
        OSError: it cannot be written, or `path` is a folder, a device or a pipe.

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
        raise OSError(errno.EINVAL, 'is no regular file, and cannot be replaced by one', str(given))
    with _beside(target) as place:
        new = place / target.name
        yield new
        flush(new)
        os.replace(new, target)
        flush_one(target.parent)


@contextlib.contextmanager
def new_folder(
    folder: str | os.PathLike[str], own: Callable[[str], bool]
) -> Iterator[pathlib.Path]:
    """Gives an empty folder to write to, which takes the place of `folder` when the block ends.

    Where the block raises, `folder` is left as it was. Links in `folder` are not followed. What
    else it holds stays in it: other files are there in both versions; folders in it move over right
    after the exchange.

    Args:
        folder: is made, or replaced.
        own: whether a name in `folder` is one of a file that this writer writes; the older version
            of such a file goes with the older folder.

    Raises:
        OSError: it cannot be written, or `folder` is a file or the working folder of this process.

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
    with _beside(target) as place:
        new = place / _NEW
        new.mkdir()
        yield new
        flush(new)
        _take_place(new, target, own)
        flush_one(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text, and reads it back.

    Raises:
        OSError: it cannot be written, or is another when it is read back.
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
    """Writes contiguous arrays to a safetensors file, and reads them back.

    Raises:
        OSError: they cannot be written, on a full disk say, or are others when they are read back.
    """
    file = pathlib.Path(path)
    try:
        save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
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


def flush(path: pathlib.Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir() and not path.is_symlink():
        for each in path.iterdir():
            flush(each)
    if not path.is_symlink():
        flush_one(path)


def flush_one(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if hasattr(os, 'posix_fadvise') and not stat.S_ISDIR(os.fstat(handle).st_mode):
            # What is read next comes from the disk, and not from memory.
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _other(file: pathlib.Path) -> OSError:
    return OSError(errno.EIO, 'has other bytes than were written to it', str(file))


@contextlib.contextmanager
def _beside(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder of this process beside the target, locked; it is removed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear(target)
    place = target.parent / f'{_prefix(target)}{secrets.token_hex(8)}.new'
    place.mkdir()
    handle = os.open(place, os.O_RDONLY)
    try:
        _lock(handle)
        yield place
    except OSError as error:
        elsewhere = error.filename is not None and place.name not in str(error.filename)
        if elsewhere or error.errno is None:
            raise
        # The path that the caller gave says more than that of the working folder.
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        os.close(handle)
        shutil.rmtree(place, ignore_errors=True)


def _prefix(target: pathlib.Path) -> str:
    return f'.{target.name[:100]}.'


def _lock(handle: int) -> bool:
    """Locks a folder for as long as `handle` is open; False where another process has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # Others have it, or a file system that has no locks.
        return False
    return True


def _clear(target: pathlib.Path) -> None:
    """Removes working folders of processes that were killed; what is not theirs goes back."""
    for place in target.parent.glob(f'{glob.escape(_prefix(target))}{"[0-9a-f]" * 16}.new'):
        with contextlib.suppress(OSError):
            if place.is_symlink() or time.time() - place.stat().st_mtime < _STALE:
                continue
            handle = os.open(place, os.O_RDONLY | getattr(os, 'O_NOFOLLOW', 0))
            try:
                if not _lock(handle):
                    continue
                if not target.exists() and (place / _OLD).is_dir():
                    (place / _OLD).rename(target)
                for version in (_NEW, _OLD):
                    if target.is_dir() and (place / version).is_dir():
                        _give_back(place / version, target, lambda each: not each.is_dir())
            finally:
                os.close(handle)
            shutil.rmtree(place)


def _take_place(new: pathlib.Path, target: pathlib.Path, own: Callable[[str], bool]) -> None:
    try:
        os.rename(new, target)  # Also over an empty folder.
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return
    for each in target.iterdir():
        if own(each.name) or (each.is_dir() and not each.is_symlink()):
            continue
        with contextlib.suppress(FileNotFoundError):  # Gone since it was listed.
            if each.is_symlink():
                (new / each.name).symlink_to(os.readlink(each))
            else:
                os.link(each, new / each.name)
    flush_one(new)
    old = _exchange(new, target)
    _give_back(old, target, lambda each: own(each.name))


def _exchange(new: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Puts two folders in each other's place; gives the one where the older is now."""
    call = getattr(ctypes.CDLL(None, use_errno=True), 'renameat2', None)
    if call is not None:
        if call(_HERE, os.fsencode(new), _HERE, os.fsencode(target), _EXCHANGE) == 0:
            return new
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))
    # A file system that cannot: for a moment the older version is in the working folder alone.
    old = new.with_name(_OLD)
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    return old


def _give_back(
    old: pathlib.Path, target: pathlib.Path, stays: Callable[[pathlib.Path], bool]
) -> None:
    """Moves to the target what is in the older folder and does not belong to its version."""
    for each in old.iterdir():
        if not stays(each) and not (target / each.name).exists():
            os.rename(each, target / each.name)
