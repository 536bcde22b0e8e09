"""The display of a running sweep: its plan, and the state of its runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from peftjax.plan.machines import machine_here
from peftjax.sweep.best import best_of
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.groups import Group
from peftjax.sweep.intervals import Interval, Setting
from peftjax.sweep.names import changes_text
from peftjax.sweep.rows import SweepRun
from peftjax.sweep.score import read_score


def plan_table(groups: Sequence[Group]) -> Table:
    """The plan of a sweep: its groups and the memory of each, in MiB."""
    machine = machine_here()
    table = Table(title='Groups, MiB', title_justify='left')
    names = ['group', 'runs', 'which', 'steps', 'base', 'a run', 'its step', 'in all', 'TFLOP']
    for name in [*names, *(['s at least'] if machine else [])]:
        table.add_column(name, justify='right', overflow='fold')
    for each in groups:
        cells = [each.name, str(len(each.rows)), f'{each.names[0]} to {each.names[-1]}']
        cells.append(', '.join(map(str, sorted({ready.run.steps for ready in each.rows}))))
        sizes = each.base, each.each, each.step, each.memory
        cells += [f'{size / 2**20:,.0f}' for size in sizes]
        cells.append(f'{each.products / 1e12:,.1f}')
        cells += [f'{each.products / machine.flops:,.0f}'] if machine else []
        table.add_row(*cells)
    return table


def settings_table(settings: Sequence[Setting], metric: str) -> Table:
    """Settings with their means over seeds, 95 % intervals, and differences from the best."""
    table = Table(
        title='Settings over seeds, ± 95 %',
        title_justify='left',
        caption='difference: from the best setting, seed by seed',
        caption_justify='left',
    )
    for name in ('setting', metric, 'difference', 'runs'):
        text = name == 'setting'
        table.add_column(
            name, justify='left' if text else 'right', overflow='fold', no_wrap=not text
        )
    for each in settings:
        difference = '' if each.difference is None else _text(each.difference, '+')
        ended, begun = each.score.n, each.begun
        runs = str(ended) if ended == begun else f'{ended} of {begun}'
        table.add_row(each.name, _text(each.score, ''), difference, runs)
    return table


def _text(found: Interval, sign: str) -> str:
    """A mean with half the width of its interval; a single value has no interval."""
    half = '' if found.n < 2 else f' ± {found.high - found.mean:.4f}'
    return f'{found.mean:{sign}.4f}{half}'


class Board:
    """The state of every run, for people; the best run by a score comes first.

    The test split chooses nothing.
    """

    def __init__(self, folder: SweepFolder, rows: Sequence[SweepRun], score: str):
        """Reads the state from the folder.

        Args:
            folder: of the sweep.
            rows: the runs to show.
            score: as `read_score` reads it.
        """
        self._runs: dict[str, dict[str, Any]] = {}
        self._score = read_score(score)
        for row in rows:
            known = folder.progress(row.name)
            self._runs[row.name] = {'run': row.name, 'changes': row.changes, **known}

    def update(self, run: str, values: Mapping[str, Any]) -> None:
        """Takes the newest values of a run."""
        self._runs[run].update(values)

    def table(self) -> Table:
        """All runs in their present state. The best of those that ended is marked with a star."""
        runs = sorted(self._runs.values(), key=self._score.order)
        best = best_of(runs, self._score)
        table = Table(
            title='Runs',
            title_justify='left',
            caption=f'* the best by {self._score.name}' if best else None,
            caption_justify='left',
        )
        columns = self._columns(runs)
        for name in ('run', 'changes', 'status', 'step', *columns):
            # Text that does not fit a narrow terminal is wrapped; numbers stay whole.
            text = name == 'changes'
            table.add_column(
                name, justify='left' if text else 'right', overflow='fold', no_wrap=not text
            )
        for run in runs:
            name = run['run'] + ('*' if run is best else '')
            numbers = [f'{run[key]:.4f}' if key in run else '' for key in columns.values()]
            cells = [name, changes_text(run['changes']), run['status'], str(run.get('step', ''))]
            table.add_row(*cells, *numbers, style='bold' if run is best else None)
        return table

    def _columns(self, runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """The names of the number columns, and the score in each."""
        last = self._score.name.partition('/')[2]
        columns = {'loss': 'loss', f'validation\n{last}': self._score.name}
        if any(f'test/{last}' in run for run in runs):
            columns[f'test\n{last}'] = f'test/{last}'
        return columns
