"""Numbers over time, written twice: JSON lines to compute with, TensorBoard to look at."""

import json
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from peftjax.train.files import write_whole

_FILE = 'metrics.jsonl'


class MetricsWriter:
    """Writes scalars of a step to `metrics.jsonl` and TensorBoard event files in a folder.

    A resumed run passes the step it resumes from: later lines, written by the run that was
    interrupted, are dropped, and so is the final evaluation, which is made again. So each number
    stands in the file once.
    """

    def __init__(self, workdir: Path, resumed_from: int = 0):
        self._path = workdir / _FILE
        kept = [
            row
            for row in read_metrics(workdir)
            if row['step'] <= resumed_from and 'test/loss' not in row
        ]
        write_whole(self._path, ''.join(json.dumps(row) + '\n' for row in kept))
        self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=resumed_from + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line `{"step": step, **values}`."""
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps({'step': step, **values}) + '\n')
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class Silence:
    """In place of a `MetricsWriter`, in a process that does not log."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines written so far, in order; none if there is no file.

    A last line cut short by an interrupted write is left out.
    """
    path = workdir / _FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding='utf-8').split('\n')
    return [json.loads(line) for line in lines[:-1]]
