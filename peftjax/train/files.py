"""Files that are whole or not there."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a text beside the file and puts it in its place in one go.

    Example:
        >>> folder = getfixture('tmp_path')
        >>> write_whole(folder / 'a.json', '{}')
        >>> [path.name for path in folder.iterdir()]
        ['a.json']
    """
    new = path.with_name(f'.{path.name}.new')
    new.write_text(text, encoding='utf-8')
    os.replace(new, path)
