"""Puts a new folder in the place of an older one, and keeps the other files of the older one."""

import contextlib
import ctypes
import errno
import os
import pathlib
from collections.abc import Callable, Mapping

from peftjax.interop.files.disk import flush_one, permit_alike

NEW, OLD = 'new', 'old'
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
# Device, inode and time of a file; None if there is no file.
_Identity = tuple[int, int, int] | None


class NotMovedError(OSError):
    """A save is in its place, but not all of the older folder could be moved to it."""


def take_place(new: pathlib.Path, target: pathlib.Path, own: Callable[[str], bool]) -> None:
    """Puts `new` in the place of `target`, which may be a folder; see `whole.new_folder`."""
    if target.exists():
        for name in [path.name for path in new.iterdir()]:
            permit_alike(new / name, target / name)
        permit_alike(new, target)
    try:
        os.rename(new, target)  # Also over an empty folder.
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return
    copies = _copy_others(target, new, own)
    flush_one(new)
    old = _exchange(new, target)
    _give_changed(old, target, copies)
    give_back(
        old,
        target,
        lambda each: own(each.name) or (each.name in copies and not _is_folder(each)),
    )


def give_back(
    old: pathlib.Path, target: pathlib.Path, stays: Callable[[pathlib.Path], bool]
) -> None:
    """Moves to the target what is in the older folder and does not belong to its version.

    Raises:
        NotMovedError: some of it cannot be moved. The rest was moved.
    """
    failed = None
    for each in old.iterdir():
        there = target / each.name
        try:
            if stays(each):
                continue
            if not os.path.lexists(there):
                os.rename(each, there)
            elif _is_folder(each) and _is_folder(there):
                give_back(each, there, lambda _: False)
        except OSError as error:
            text = f'{os.strerror(error.errno or 0)}; what could not be moved is in {old}'
            failed = NotMovedError(error.errno, text, str(there))
    if failed is not None:
        raise failed


def _copy_others(
    target: pathlib.Path, new: pathlib.Path, own: Callable[[str], bool]
) -> dict[str, tuple[_Identity, _Identity]]:
    """Links files that are not the writer's into the new folder; returns both identities by name.

    Raises:
        OSError: a file cannot be linked, or a folder could not be moved later.
    """
    copies = {}
    for each in target.iterdir():
        if own(each.name):
            continue
        if _is_folder(each):
            if os.path.ismount(each) or not os.access(each, os.W_OK):
                text = (
                    'is a mount point or read-only, and cannot move to a new version of its folder'
                )
                raise OSError(errno.EPERM, text, str(each))
            continue
        with contextlib.suppress(FileNotFoundError):  # Gone since it was listed.
            original, copy = _identity(each), new / each.name
            if each.is_symlink():
                copy.symlink_to(os.readlink(each))
            else:
                os.link(each, copy)
            copies[each.name] = original, _identity(copy)
    return copies


def _give_changed(
    old: pathlib.Path, target: pathlib.Path, copies: Mapping[str, tuple[_Identity, _Identity]]
) -> None:
    """Repeats in the target what others did to files between the copy and the exchange."""
    for name, (original, copy) in copies.items():
        before, now = _identity(old / name), _identity(target / name)
        if before == original or now is None or copy is None or now[:2] != copy[:2]:
            continue  # Nobody changed it before the exchange, or somebody did after it.
        if before is None or _is_folder(old / name):
            (target / name).unlink(missing_ok=True)
        else:
            os.replace(old / name, target / name)  # Does nothing where both are one file.


def _identity(path: pathlib.Path) -> _Identity:
    try:
        about = path.lstat()
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino, about.st_mtime_ns


def _is_folder(path: pathlib.Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _exchange(new: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Exchanges two folders; returns the path where the older one is now."""
    call = getattr(ctypes.CDLL(None, use_errno=True), 'renameat2', None)
    if call is not None:
        if call(_HERE, os.fsencode(new), _HERE, os.fsencode(target), _EXCHANGE) == 0:
            return new
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))
    # Where folders cannot be exchanged, for a moment only the working folder has the older version.
    old = new.with_name(OLD)
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    return old
