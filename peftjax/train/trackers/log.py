"""Numbers over time as JSON lines, one line a call: the file that everything here reads again."""

import json
from collections.abc import Mapping
from pathlib import Path

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
            for row in read_metrics(workdir)
            if row['step'] <= resumed_from and not any(name.startswith('test/') for name in row)
        ]
        write_whole(self._path, ''.join(json.dumps(row) + '\n' for row in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line `{"step": step, **values}`."""
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps({'step': step, **values}) + '\n')

    def close(self) -> None:
        """Nothing: each line was closed when it was written."""


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines written so far, in order; none if there is no file.

    A last line cut short by an interrupted write is left out.
    """
    path = workdir / _FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding='utf-8').split('\n')
    return [json.loads(line) for line in lines[:-1]]
