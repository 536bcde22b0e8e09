"""Reads JSON lines within limits on their size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftjax.interop.files.bounded_json import parse

MOST_LINE = 2**22
MOST_BYTES = 2**28


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, one on each line, with their line numbers from 1.

    Empty lines are skipped. One line is held at a time.

    Raises:
        OSError: the file is not there.
        ValueError: a file of more than 256 MiB or a line of more than 4 MiB; a line that is not
            UTF-8, not JSON, or no object. The message names file and line.

    Example:
        >>> file = getfixture('tmp_path') / 'prompts.jsonl'
        >>> _ = file.write_text('{"prompt": "a"}\\n\\n{"prompt": "b"}\\n')
        >>> list(read_objects(file))
        [(1, {'prompt': 'a'}), (3, {'prompt': 'b'})]
    """
    number = read = 0
    with path.open('rb') as file:
        while line := file.readline(MOST_LINE + 1):
            number, read = number + 1, read + len(line)
            where = f'{path}, line {number}'
            if len(line) > MOST_LINE or read > MOST_BYTES:
                raise ValueError(
                    f'{where}: more than {MOST_LINE} bytes in a line, or {MOST_BYTES} in the file'
                )
            try:
                text = line.decode('utf-8').strip()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f'{where}: not UTF-8: {error.reason} at byte {error.start}'
                ) from None
            if not text:
                continue
            try:
                value = parse(text)
            except ValueError as error:
                raise ValueError(f'{where}: {error}') from None
            if not isinstance(value, dict):
                raise ValueError(f'{where}: {text[:60]!r} is no object')
            yield number, value
