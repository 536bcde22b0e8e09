"""Files that are either complete or absent."""

from pathlib import Path

from peftjax.interop.errors import readable
from peftjax.interop.files import whole
from peftjax.interop.files.bounded_json import read_object
from peftjax.interop.files.whole import new_file

__all__ = ['new_file', 'read_object', 'readable', 'write_whole']


def write_whole(path: Path, text: str) -> None:
    """Writes a text to a new file beside `path`, which then replaces `path` in one step.

    Raises:
        OSError: the file cannot be written; an older file is left as it was.

    Example:
        >>> folder = getfixture('tmp_path')
        >>> write_whole(folder / 'a.json', '{}')
        >>> [path.name for path in folder.iterdir()]
        ['a.json']
    """
    with new_file(path) as new:
        whole.write_text(new, text)
