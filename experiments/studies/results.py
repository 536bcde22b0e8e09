"""The rows that a study has made: a file that is appended to, so that a study can go on."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.train.files import write_whole

Row = dict[str, Any]


class Results:
    """The rows of `results.jsonl`, one a fit, in the order they were made.

    Raises:
        ValueError: the folder's protocol.json is not `protocol`.
    """

    def __init__(self, folder: Path, protocol: Mapping[str, Any]):
        self._path = folder / 'results.jsonl'
        written = folder / 'protocol.json'
        text = json.dumps(protocol, indent=2) + '\n'
        if written.exists() and json.loads(written.read_text(encoding='utf-8')) != json.loads(text):
            raise ValueError(
                f'{written} differs from the protocol asked for, {text}; use another folder'
            )
        write_whole(written, text)
        self.rows = read(self._path)

    def add(self, row: Row) -> None:
        """Appends a row, on the disk before this returns."""
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def find(self, **fields: Any) -> Row | None:
        """The row with these values, if there is one."""
        return next((row for row in self.rows if fields.items() <= row.items()), None)


def best_exponent(loss: Callable[[int], float], grid: Sequence[int]) -> int:
    """The exponent of least loss, looked for outwards while it is at the edge of those tried.

    >>> best_exponent(lambda exponent: (exponent + 9) ** 2, (-7, -6, -5))
    -9
    """
    tried = {exponent: loss(exponent) for exponent in grid}
    while True:
        best = min(tried, key=lambda exponent: tried[exponent])
        if best == min(tried):
            tried[best - 1] = loss(best - 1)
        elif best == max(tried):
            tried[best + 1] = loss(best + 1)
        else:
            return best


def read(path: Path) -> list[Row]:
    """The rows of a results.jsonl; none if there is no file. A last line cut short is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding='utf-8')
    whole = text[: text.rfind('\n') + 1]
    if whole != text:
        write_whole(path, whole)
    return [json.loads(line) for line in whole.splitlines()]
