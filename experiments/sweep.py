"""Many runs on one base: python -m experiments.sweep --config configs/x.py --sweep rank --workdir d

The rows are what `sweep_<name>(add)` in the config file adds, on top of what flags change in the
config. Rows that differ in numbers alone (rates, seeds, alphas, ranks) train together in one
program. The same command started again goes on with what is missing; started several times, each
process takes groups that nobody works on.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console
from rich.live import Live
from rich.table import Table

from experiments.command_line import CONFIG, WORKDIR, read_flags
from experiments.compiled import keep_compiled_programs
from experiments.endings import plain_endings
from experiments.sweep_folder import SweepFolder, summary
from experiments.sweep_groups import Group, group, memory_here, prepare
from experiments.sweep_page import write_report
from experiments.sweep_rows import Row, expand, load_module
from experiments.sweep_train import train_group
from peftjax.training import machine_here

flags.mark_flag_as_required('workdir')
_SWEEP = flags.DEFINE_string('sweep', None, 'sweep_<name> of the config file.', required=True)
_MOST = flags.DEFINE_integer('together', 32, 'Rows in one program at most.', lower_bound=1)
_MEMORY = flags.DEFINE_float('memory_gib', None, 'For a program; unless given, what is here.')


def run(
    rows: Sequence[Row],
    folder: SweepFolder,
    console: Console,
    *,
    config: str = '',
    sweep: str = '',
    most: int = 32,
    memory: float | None = None,
) -> list[dict[str, Any]]:
    """Runs what is missing of a sweep; nothing is trained before every row is known to be right.

    Args:
        rows: of `sweep_rows.expand`.
        folder: of the sweep.
        console: where plan, progress and results are shown.
        config, sweep: what it was made of, for sweep.json.
        most: rows in one program at most.
        memory: bytes that a program may take; unless given, what is here.

    Returns:
        The lines of results.csv.

    Raises:
        ValueError: a row that cannot run; a folder of another sweep.
        Interrupted: SIGTERM came; the state was saved.
    """
    with console.status(f'building {len(rows)} rows'):
        groups = group(prepare(rows), memory_here() if memory is None else memory, most)
    folder.begin(rows, groups, config, sweep)
    console.print(plan_table(groups))
    board = Board(folder, rows)
    with Live(board.table(), console=console, auto_refresh=False) as live:

        def tell(row: str, values: Mapping[str, Any]) -> None:
            board.update(row, values)
            live.update(board.table(), refresh=console.is_terminal)

        for each in groups:
            with folder.claim(each) as mine:
                if mine:
                    work = folder.path / 'groups' / each.name
                    train_group(each, work, folder.rows, tell)
                    folder.write_results()
        live.update(board.table(), refresh=True)
    page, lines = write_report(folder), folder.results()
    counts = ', '.join(f'{count} {status}' for status, count in summary(lines).items())
    console.print(f'{counts}: {page}', highlight=False)
    return lines


def plan_table(groups: Sequence[Group]) -> Table:
    """The plan of a sweep: its groups, and what each takes; MiB."""
    machine = machine_here()
    table = Table(title='Groups, MiB', title_justify='left')
    names = ['group', 'rows', 'which', 'steps', 'base', 'a row', 'its step', 'in all', 'TFLOP']
    for name in [*names, *(['s at least'] if machine else [])]:
        table.add_column(name, justify='right')
    for each in groups:
        rows = [ready.row.name for ready in each.rows]
        cells = [each.name, str(len(rows)), f'{rows[0]} to {rows[-1]}']
        cells.append(', '.join(map(str, sorted({ready.run.steps for ready in each.rows}))))
        sizes = each.base, each.each, each.step, each.memory
        cells += [f'{size / 2**20:,.0f}' for size in sizes]
        cells.append(f'{each.products / 1e12:,.1f}')
        cells += [f'{each.products / machine.flops:,.0f}'] if machine else []
        table.add_row(*cells)
    return table


class Board:
    """Where every row stands, for people."""

    def __init__(self, folder: SweepFolder, rows: Sequence[Row]):
        self._rows: dict[str, dict[str, Any]] = {}
        for row in rows:
            known = folder.result(row.name) or {'status': 'waiting'}
            self._rows[row.name] = {'changes': row.changes, **known}

    def update(self, row: str, values: Mapping[str, Any]) -> None:
        """Takes what a row tells."""
        self._rows[row].update(values)

    def table(self) -> Table:
        """All rows, those with the best validation scores first: the test split chooses nothing."""
        table = Table(title='Rows', title_justify='left')
        for name in ('row', 'changes', 'status', 'step', 'loss', 'validation', 'test'):
            table.add_column(name, justify='left' if name == 'changes' else 'right')

        def score(item: tuple[str, Mapping[str, Any]]) -> float:
            return -item[1].get('validation/accuracy', -1.0)

        for name, row in sorted(self._rows.items(), key=score):
            changes = '  '.join(f'{field}={value}' for field, value in row['changes'].items())
            numbers = [
                f'{row[key]:.4f}' if key in row else ''
                for key in ('loss', 'validation/accuracy', 'test/accuracy')
            ]
            step = row.get('step', row.get('steps', ''))
            table.add_row(name, changes, row['status'], str(step), *numbers)
        return table


def main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.FATAL)
    keep_compiled_programs()
    if len(argv) > 1:
        sys.exit(f'unexpected argument {argv[1]!r}; settings are flags: --config.name=value')
    # The part behind a colon is the config's own argument.
    path = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
    memory = None if _MEMORY.value is None else _MEMORY.value * 2**30
    with plain_endings(ValueError):
        rows = expand(load_module(path), _SWEEP.value, CONFIG.value)
        run(
            rows,
            SweepFolder(Path(str(WORKDIR.value))),
            Console(),
            config=path,
            sweep=_SWEEP.value,
            most=_MOST.value,
            memory=memory,
        )


if __name__ == '__main__':
    app.run(main, flags_parser=read_flags)
