"""The best run of a sweep, and how to use it or repeat it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from peftjax.sweep.names import Line
from peftjax.sweep.score import Score
from peftjax.train.member import ADAPTER, LAST


class Use(NamedTuple):
    """How to use a run of a sweep, as texts to copy.

    Attributes:
        adapter: the folder of its best adapter, of any step; None if there is none.
        last: the folder of its adapter at the last step; None if there is none.
        config: the file with all of its settings.
        command: a command that trains it again, alone.
    """

    adapter: str | None
    last: str | None
    config: str
    command: str


def best_of(lines: Sequence[Line], score: Score) -> Line | None:
    """The run with the best score among the runs that trained to their end; None if none did.

    Example:
        >>> lines = [{'run': n, 'status': 'done', 'validation/f1': n / 10} for n in range(3)]
        >>> best_of(lines, Score('validation/f1', smaller=False))['run']
        2
    """
    ended = [each for each in lines if each['status'] == 'done' and score.of(each) is not None]
    return min(ended, key=score.order, default=None)


def use_of(sweep: Path, run: str) -> Use:
    """How to use a run.

    Args:
        sweep: the folder of the sweep.
        run: the name of the run.

    Example:
        >>> use_of(Path('runs/rank'), '003').command
        'peftjax train --config runs/rank/runs/003/config.json --workdir runs/rank-003'
    """
    folder = sweep / 'runs' / run
    config = folder / 'config.json'
    adapter, last = (
        str(folder / name) if (folder / name).is_dir() else None for name in (ADAPTER, LAST)
    )
    words = ['peftjax', 'train', '--config', str(config)]
    words += ['--workdir', str(sweep.with_name(f'{sweep.resolve().name}-{run}'))]
    return Use(adapter, last, str(config), shlex.join(words))


def best_text(sweep: Path, lines: Sequence[Line], score: Score) -> str:
    """The best run in a few lines for a terminal, or a line that says that there is none."""
    best = best_of(lines, score)
    if best is None:
        return f'no run has ended with a {score.name}'
    use = use_of(sweep, best['run'])
    step = f' (of step {best["best_step"]})' if best.get('best_step') else ''
    return '\n'.join(
        (
            f'best run by {score.name}: {best["run"]} with {score.of(best):.4f}',
            f'  adapter:  {use.adapter or "none was kept"}{step}',
            f'  settings: {use.config}',
            f'  alone:    {use.command}',
        )
    )
