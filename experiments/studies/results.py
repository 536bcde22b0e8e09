"""The rows of a study, in a file that is only appended to, so that a study can be resumed."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.train.files import write_whole

Row = dict[str, Any]


class Results:
    """The rows of `results.jsonl`, in the order in which they were made.

    Args:
        folder: of the study; it is created if needed.
        protocol: a dataclass that determines the results. It is kept as protocol.json.

    Raises:
        ValueError: the folder has results of another protocol.
    """

    def __init__(self, folder: Path, protocol: Any):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / 'results.jsonl'
        written = folder / 'protocol.json'
        text = json.dumps(dataclasses.asdict(protocol), indent=2) + '\n'
        if written.exists() and json.loads(written.read_text(encoding='utf-8')) != json.loads(text):
            raise ValueError(
                f'{written} differs from the protocol of this run, {text}; use another folder'
            )
        write_whole(written, text)
        self.rows = read(self._path)

    def add(self, row: Row) -> None:
        """Appends a row, and returns once it is on the disk."""
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def once(self, fields: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> Row:
        """The row with these values; it is made, added and printed if there is none.

        Args:
            fields: the values that identify the row.
            make: computes the other fields. The time this took is added as `seconds`.
        """
        row = self.find(**fields)
        if row is None:
            began = time.perf_counter()
            made = make()
            row = {**fields, **made, 'seconds': round(time.perf_counter() - began, 1)}
            self.add(row)
            print(json.dumps(row), flush=True)
        return row

    def find(self, **fields: Any) -> Row | None:
        """The row with these values, or None."""
        return next((row for row in self.rows if fields.items() <= row.items()), None)


def best_exponent(loss: Callable[[int], float], grid: Sequence[int]) -> int:
    """The exponent of least loss; the grid is extended while the best one is at its edge.

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
    """The rows of a results.jsonl; none without a file. An incomplete last line is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding='utf-8')
    whole = text[: text.rfind('\n') + 1]
    if whole != text:
        write_whole(path, whole)
    return [json.loads(line) for line in whole.splitlines()]
