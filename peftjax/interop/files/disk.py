"""Files on the disk: waiting until they are written, and their permissions."""

import os
import pathlib
import stat


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
            # The next read then comes from the disk, and not from memory.
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def permit_alike(new: pathlib.Path, older: pathlib.Path) -> None:
    """Gives a file or a folder the permissions of the one that it will replace, if there is one."""
    try:
        about = older.stat()
    except OSError:
        return
    made = new.stat()
    if stat.S_IFMT(about.st_mode) != stat.S_IFMT(made.st_mode):
        return
    mode = stat.S_IMODE(about.st_mode)
    if stat.S_ISREG(about.st_mode):
        mode &= 0o777
    if made.st_gid != about.st_gid:
        try:
            os.chown(new, -1, about.st_gid)
        except PermissionError:
            mode &= ~stat.S_IRWXG  # These permissions were given to another group.
    new.chmod(mode)
