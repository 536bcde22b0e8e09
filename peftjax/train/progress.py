"""A progress bar with the loss, tokens per second and the time left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_WAITING = 'compiling'


def terminal(*, quiet: bool = False) -> Console:
    """Where people watch; nothing moves in a file, though a notebook asks programs for colours."""
    return Console(quiet=quiet, force_terminal=None if sys.stdout.isatty() else False)


class StepProgress:
    """The bar of one run; `update` after each step, `say` for a line that stays."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress = progress
        self._task = task

    def update(self, step: int, status: str | None = None) -> None:
        """Moves the bar to `step`; a status replaces the text at its end."""
        if status is None:
            self._progress.update(self._task, completed=step)
        else:
            self._progress.update(self._task, completed=step, status=status)

    def say(self, line: str) -> None:
        """Prints a line above the bar; in a log file, where no bar moves, it is all that shows."""
        self._progress.console.print(line, highlight=False)


@contextmanager
def step_progress(console: Console, *, total: int, done: int) -> Iterator[StepProgress]:
    """Shows a bar from step `done` to step `total` while the context is open."""
    columns = (
        TextColumn('train'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.fields[status]}'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task('train', total=total, completed=done, status=_WAITING)
        yield StepProgress(progress, task)
