"""Numbers over time as JSON lines, one line for each call, in a file that this library reads."""

import json
from collections.abc import Mapping
from pathlib import Path

from peftjax.interop.files.bounded_json import parse
from peftjax.interop.files.disk import flush_one
from peftjax.train.files import write_whole

_FILE = 'metrics.jsonl'


class MetricsWriter:
    """Writes scalars of a step to `metrics.jsonl` in a folder.

    A resumed run passes the step it resumes from. Later lines, which the interrupted run wrote, are
    dropped, and so is the final evaluation, which is made again. Each number is then in the file
    once.

    Example:
        >>> folder = getfixture('tmp_path')
        >>> writer = MetricsWriter(folder)
        >>> writer.write(2, {'train/loss': 0.5})
        >>> writer.close()
        >>> read_metrics(folder)
        [{'step': 2, 'train/loss': 0.5}]
    """

    def __init__(self, workdir: Path, resumed_from: int = 0):
        self._path = workdir / _FILE
        kept = [
            row
            for row in whole_lines(workdir)[0]
            if row['step'] <= resumed_from and not any(name.startswith('test/') for name in row)
        ]
        write_whole(self._path, ''.join(json.dumps(row) + '\n' for row in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line `{"step": step, **values}`."""
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps({'step': step, **values}) + '\n')

    def close(self) -> None:
        """Does nothing: the file is closed after each line."""


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines written so far, in order; none if there is no file.

    A last line cut short by an interrupted write is left out.

    Raises:
        ValueError: another line is damaged; the message names file and line.
    """
    lines, damaged = whole_lines(workdir)
    if damaged is not None:
        raise ValueError(f'{workdir / _FILE}, line {len(lines) + 1} {damaged}')
    return lines


def whole_lines(workdir: Path) -> tuple[list[dict[str, float]], str | None]:
    """The lines before the first damaged one, and its damage; None if no line is damaged."""
    path = workdir / _FILE
    if not path.exists():
        return [], None
    found: list[dict[str, float]] = []
    for line in path.read_text(encoding='utf-8', errors='replace').split('\n')[:-1]:
        try:
            row = parse(line, finite=False)
        except ValueError as error:
            return found, str(error)
        if not isinstance(row, dict) or type(row.get('step')) is not int:
            return found, 'is no line of a log'
        found.append(row)
    return found, None


def flush_metrics(workdir: Path) -> None:
    """Waits until the lines are on the disk."""
    if (workdir / _FILE).exists():
        flush_one(workdir / _FILE)
