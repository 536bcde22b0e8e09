"""Runs the missing part of a sweep: plans its groups, trains them, writes the results."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live

from peftjax.sweep.best import best_text
from peftjax.sweep.board import Board, plan_table, settings_table
from peftjax.sweep.folder import SweepFolder, summary
from peftjax.sweep.groups import Group, as_group, group, memory_here, prepare
from peftjax.sweep.intervals import settings
from peftjax.sweep.page import write_report
from peftjax.sweep.pruning import Prune, nobody
from peftjax.sweep.rows import SweepRun
from peftjax.sweep.score import read_score
from peftjax.sweep.work import Work, here
from peftjax.train.build import build_model, build_task
from peftjax.train.placement import Placement
from peftjax.train.settings import Settings
from peftjax.train.tasks.infer import infer


def default_score(folder: SweepFolder, settings: Settings) -> str:
    """The default score of a sweep: the score that chooses the best checkpoint of a run.

    The score that the folder was begun with, the setting `best`, or the score of the task, for
    which model and data are loaded.

    Args:
        folder: of the sweep.
        settings: that its runs change.
    """
    begun = folder.about()['score'] if folder.begun else ''
    if begun or settings.best is not None:
        return begun or str(settings.best)
    settings = infer(settings)
    return build_task(settings, build_model(settings, Placement.of(settings.mesh))).best


class Sweep(NamedTuple):
    """A sweep in its folder.

    Attributes:
        folder: of the sweep.
        console: where plan and progress are shown.
        config, name: the file and the function that its rows come from.
        score: the score that compares runs, as `peftjax.sweep.score.read_score` reads it.
        most: rows in one program at most.
        memory: bytes that a program may take; None for the memory of this machine.
        work: who trains.
    """

    folder: SweepFolder
    console: Console
    config: str = ''
    name: str = ''
    score: str = 'validation/accuracy'
    most: int = 32
    memory: float | None = None
    work: Work = here

    def run(self, rows: Sequence[SweepRun], prune: Prune = nobody, wait: bool = False) -> None:
        """Runs the missing rows; nothing is trained before all rows have been checked.

        Args:
            rows: all rows of the sweep, or the rows that are known so far.
            prune: which rows stop early.
            wait: also wait for groups that other processes work on.

        Raises:
            ValueError: a row that cannot run; a folder of another sweep; a group that was made
                where there was more memory.
            Interrupted: SIGTERM came; the state was saved.
        """
        read_score(self.score)  # a wrong name ends here, before anything is built
        for name, why in self.folder.take_back().items():
            self.console.print(
                f'run {name} is trained again, as its folder is damaged: {why}',
                highlight=False,
                markup=False,
            )
        with self.console.status(f'building {len(rows)} runs'):
            groups = self._plan(rows)
        if not groups:
            return
        self.console.print(plan_table(groups))
        board = Board(self.folder, rows, self.score)
        shown = self.console.is_terminal
        with Live(board.table(), console=self.console, auto_refresh=False, transient=True) as live:

            def tell(row: str, values: Any) -> None:
                if 'note' in values:
                    live.console.print(f'run {values["note"]}', highlight=False, markup=False)
                    return
                board.update(row, values)
                if shown:
                    live.update(board.table(), refresh=True)

            self.work(groups, self.folder, prune, tell, wait)

    def _plan(self, rows: Sequence[SweepRun]) -> list[Group]:
        """The unfinished groups of the folder, and new groups."""
        held = self.folder.groups()
        due = self._due(held, {row.name for row in rows})
        grouped = {name for names in held.values() for name in names}
        wanted = {name for names in due.values() for name in names}
        wanted |= {row.name for row in rows} - grouped
        ready = {each.row.name: each for each in prepare([r for r in rows if r.name in wanted])}
        limit = memory_here() if self.memory is None else self.memory
        new = group([each for name, each in ready.items() if name not in grouped], limit, self.most)
        made = {tuple(each.names): each for each in new}
        groups = []
        for name, names in self.folder.begin(
            rows, made, self.config, self.name, self.score
        ).items():
            members = [ready[row] for row in names if row in ready]
            if not members or (name in held and name not in due):
                continue  # of rows that are not given, or over
            found = made.get(tuple(names)) or as_group(name, members)
            if found.memory > limit:
                raise ValueError(
                    f'group {name} of {self.folder.path} takes {found.memory / 2**20:,.0f} MiB, '
                    f'more than the {limit / 2**20:,.0f} MiB there are: it was begun with more '
                    'memory; continue it there, or choose another --workdir'
                )
            groups.append(found._replace(name=name))
        return groups

    def _due(
        self, held: Mapping[str, Sequence[str]], known: set[str]
    ) -> Mapping[str, Sequence[str]]:
        """Groups of the folder that are not over, of rows that are known."""
        open_ = {name: names for name, names in held.items() if not self.folder.over(names)}
        due = {name: names for name, names in open_.items() if known.intersection(names)}
        for name, names in due.items():
            if lost := set(names) - known:
                raise ValueError(
                    f'group {name} of {self.folder.path} holds run {min(lost)}, which the sweep '
                    'no longer has: add that run again, or choose another --workdir'
                )
        return due

    def finish(self, rows: Sequence[SweepRun]) -> list[dict[str, Any]]:
        """Shows the results and writes the page; returns the lines of results.csv."""
        page, lines = write_report(self.folder), self.folder.results()
        board = Board(self.folder, rows, self.score)
        self.console.print(board.table())
        fields = sorted({field for line in lines for field in line if field.startswith('config.')})
        score = read_score(self.score)
        found = settings(lines, fields, score.name, score.smaller)
        if any(each.begun > 1 for each in found):
            self.console.print(settings_table(found, score.name))
        text = best_text(self.folder.path, lines, score)
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        counts = ', '.join(f'{count} {status}' for status, count in summary(lines).items())
        self.console.print(f'{counts}: {page}', highlight=False)
        return lines
