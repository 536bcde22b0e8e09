"""Progress of a run: a bar in a terminal, and lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from absl import logging
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


def terminal(*, quiet: bool = False, width: int | None = None) -> Console:
    """The console for progress; in a file nothing moves, even if a notebook asks for colours.

    width: in characters, if the output is not a terminal; None is 80.
    """
    if sys.stdout.isatty():
        return Console(quiet=quiet)
    return Console(quiet=quiet, force_terminal=False, width=width)


def quiet_libraries() -> None:
    """Keeps the logs of libraries out of the progress.

    Otherwise Orbax writes every step of every save over the bar, and an error twice.
    """
    logging.set_verbosity(logging.FATAL)


class StepProgress(Protocol):
    """Shows how far a run is."""

    def update(self, step: int, status: str | None = None) -> None:
        """Called after each step; `status` is given if numbers were logged."""
        ...

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        ...


class _Bar:
    """A bar that moves with each step, and ends with the newest status."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress = progress
        self._task = task

    def update(self, step: int, status: str | None = None) -> None:
        if status is None:
            self._progress.update(self._task, completed=step)
        else:
            self._progress.update(self._task, completed=step, status=status)

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False)


class _Lines:
    """A line for each status, with the time left.

    The first step of a run compiles, so the time is measured from its end.
    """

    def __init__(self, console: Console, total: int, clock: Callable[[], float]):
        self._console, self._total, self._clock = console, total, clock
        self._first: tuple[int, float] | None = None

    def update(self, step: int, status: str | None = None) -> None:
        if self._first is None:
            self._first = step, self._clock()
        if status is not None:
            self.say(f'step {step} of {self._total}  {status}{self._left(step)}')

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _left(self, step: int) -> str:
        first, begun = self._first or (step, 0.0)
        if step == first or step >= self._total:
            return ''
        seconds = (self._clock() - begun) * (self._total - step) / (step - first)
        return f'  {_duration(seconds)} left'


@contextmanager
def step_progress(
    console: Console, *, total: int, done: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[StepProgress]:
    """Shows the progress from step `done` to step `total` while the context is open.

    In a terminal it is a bar. Elsewhere (a file, a pipe, a notebook) it is a plain line for each
    status.

    Example:
        >>> times = iter([0.0, 5.0])
        >>> console = Console(file=sys.stdout, force_terminal=False)
        >>> with step_progress(console, total=20, done=0, clock=lambda: next(times)) as progress:
        ...     progress.update(1)
        ...     progress.update(11, 'loss 0.6931')
        step 11 of 20  loss 0.6931  0:04 left
    """
    if not console.is_terminal or console.is_jupyter or console.is_dumb_terminal:
        yield _Lines(console, total, clock)
        return
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
        yield _Bar(progress, task)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
