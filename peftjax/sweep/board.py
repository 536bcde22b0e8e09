"""What a sweep shows while it runs: its plan, and where its rows stand."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from peftjax.plan.machines import machine_here
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.groups import Group
from peftjax.sweep.pruning import SCORES
from peftjax.sweep.rows import Row


def plan_table(groups: Sequence[Group]) -> Table:
    """The plan of a sweep: its groups, and what each takes; MiB."""
    machine = machine_here()
    table = Table(title='Groups, MiB', title_justify='left')
    names = ['group', 'rows', 'which', 'steps', 'base', 'a row', 'its step', 'in all', 'TFLOP']
    for name in [*names, *(['s at least'] if machine else [])]:
        table.add_column(name, justify='right')
    for each in groups:
        cells = [each.name, str(len(each.rows)), f'{each.names[0]} to {each.names[-1]}']
        cells.append(', '.join(map(str, sorted({ready.run.steps for ready in each.rows}))))
        sizes = each.base, each.each, each.step, each.memory
        cells += [f'{size / 2**20:,.0f}' for size in sizes]
        cells.append(f'{each.products / 1e12:,.1f}')
        cells += [f'{each.products / machine.flops:,.0f}'] if machine else []
        table.add_row(*cells)
    return table


class Board:
    """Where every row stands, for people; the best by a score first.

    The test split chooses nothing.
    """

    def __init__(self, folder: SweepFolder, rows: Sequence[Row], score: str):
        """Takes what the folder knows.

        Args:
            folder: of the sweep.
            rows: those to show.
            score: of `SCORES`.
        """
        self._rows: dict[str, dict[str, Any]] = {}
        self._score = score
        for row in rows:
            self._rows[row.name] = {'changes': row.changes, **folder.progress(row.name)}

    def update(self, row: str, values: Mapping[str, Any]) -> None:
        """Takes what a row tells."""
        self._rows[row].update(values)

    def table(self) -> Table:
        """All rows, as they stand now."""
        table = Table(title='Rows', title_justify='left')
        for name in ('row', 'changes', 'status', 'step', 'loss', 'validation', 'test'):
            table.add_column(name, justify='left' if name == 'changes' else 'right')

        def place(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
            score = item[1].get(self._score)
            return score is None, 0.0 if score is None else -SCORES[self._score] * score

        for name, row in sorted(self._rows.items(), key=place):
            changes = '  '.join(f'{field}={show(value)}' for field, value in row['changes'].items())
            numbers = [
                f'{row[key]:.4f}' if key in row else ''
                for key in ('loss', 'validation/accuracy', 'test/accuracy')
            ]
            table.add_row(name, changes, row['status'], str(row.get('step', '')), *numbers)
        return table


def show(value: Any) -> str:
    """A value that a row changes, short: drawn rates have many digits.

    Example:
        >>> show(0.00123456789), show(3), show(('lora', 'select'))
        ('0.001235', '3', "('lora', 'select')")
    """
    return f'{value:.4g}' if isinstance(value, float) else str(value)
