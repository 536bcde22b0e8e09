"""Runs the seeds of a published result and sets the number beside the published one."""

import fnmatch
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.table import Table

from peftjax.reproduce.rows import Row, settings_of
from peftjax.train.settings import Settings, SettingsError


class Finished(Protocol):
    """What a run gives: its scores by name."""

    @property
    def result(self) -> Mapping[str, Any]: ...


Train = Callable[[Settings, Path, Console], Finished]
"""`train(settings, workdir, console)`, as `peftjax.train.train`."""


class Result(NamedTuple):
    """The runs of a row beside the published number, all in the unit of the row.

    Attributes:
        row: of the table.
        values: one a seed, as `row.published` names the score.
        trainable: parameters that each run trained, a new head among them.
    """

    row: Row
    values: tuple[float, ...]
    trainable: int

    @property
    def value(self) -> float:
        """The statistic of the row's protocol."""
        mean = self.row.protocol.statistic == 'mean'
        return statistics.fmean(self.values) if mean else statistics.median(self.values)

    @property
    def deviation(self) -> float:
        """The standard deviation over seeds; NaN of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def show(self) -> Table:
        """The result for people."""
        row, ours = self.row, [f'{value:.4g}' for value in self.values]
        statistic = 'one run' if len(ours) == 1 else row.protocol.statistic
        statistic = 'median' if statistic == 'one' else statistic
        made = Table('', 'ours', 'published', title=f'{row.key}: {score_name(row)}')
        made.title_justify = made.caption_justify = 'left'
        made.caption = '\n'.join(f'differs: {each}' for each in row.differs) or None
        made.add_row(statistic, f'{self.value:.4g}', printed(row))
        if len(ours) > 1:
            made.add_row('deviation over seeds', f'{self.deviation:.2g}', '')
            made.add_row('least and greatest', f'{min(self.values):.4g} {max(self.values):.4g}', '')
        made.add_row('each seed', ' '.join(ours), '')
        trainable = row.published.trainable
        given = '' if trainable is None else f'{trainable:,} besides a new head'
        made.add_row('trainable parameters', f'{self.trainable:,}', given)
        return made


def run(
    row: Row,
    workdir: str | Path,
    console: Console,
    *,
    train: Train,
    seeds: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Result:
    """Trains every seed of a row, each to its end, in a folder of its own.

    A row that starts from another one's adapter trains that one first, with seed 0. Runs that are
    over are not run again, and one that was stopped goes on.

    Args:
        row: of a table.
        workdir: gets `<row>/seed_<n>` for each seed.
        console: where each run shows its progress.
        train: runs settings, such as `peftjax.train.train`.
        seeds: how many; those of the protocol unless given.
        changes: of settings, by dotted names, for every run.

    Raises:
        SettingsError: the runs have no such score as the one that was published; or settings that
            do not fit.
    """
    folder, changes = Path(workdir) / row.key, dict(changes or {})
    if row.start is not None and 'init_from' not in changes:
        first = Path(workdir) / row.start.key / 'seed_0'
        # The start has its own data.
        own = {name: value for name, value in changes.items() if not name.startswith('data.')}
        train(settings_of(row.start, 0, own), first, console)
        changes['init_from'] = str(first / 'adapter')
    values, trainable = [], 0
    for seed in range(row.protocol.seeds if seeds is None else seeds):
        settings = settings_of(row, seed, changes)
        result = train(settings, folder / f'seed_{seed}', console).result
        values.append(score(row, result) * (100 if row.published.percent else 1))
        trainable = int(result.get('trainable', 0))
    return Result(row, tuple(values), trainable)


def score(row: Row, result: Mapping[str, Any]) -> float:
    """The score of a run that the row's number is about, as a fraction.

    Raises:
        SettingsError: the run has no such score.
    """
    pattern = _name(row, row.published.split, row.published.metric)
    found = [value for name, value in result.items() if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        scores = ', '.join(name for name in result if '/' in name)
        raise SettingsError(f'{row.key} is about {pattern}; the run has {scores or "no scores"}')
    return statistics.fmean(found)


def score_name(row: Row) -> str:
    """The score for people: 'validation accuracy of the best checkpoint'."""
    published = row.published
    split = published.split.replace('_*', ' sets, mean')
    return f'{split} {published.metric} of the {row.protocol.checkpoint} checkpoint'


def printed(row: Row) -> str:
    """The published number with its spread, and whose number it is."""
    published, paper = row.published, row.paper
    if published.value is None:
        return 'no number could be read'
    spread = '' if published.spread is None else f' ± {published.spread:g}'
    where = f'arXiv:{paper.arxiv}' if paper.arxiv else paper.url
    return f'{published.value:g}{spread} ({where}, {paper.table})'


def listing(rows: Sequence[Row], missing: Callable[[Row], Sequence[str]]) -> Table:
    """Every row with its number, and what it would need that is not here."""
    made = Table('row', 'model', 'task', 'published', 'missing here')
    for row in rows:
        settings = row.settings
        number = row.published.value
        absent = missing(row)
        made.add_row(
            row.key,
            settings.model.source,
            settings.task,
            '' if number is None else f'{number:g}',
            '; '.join(absent) or 'nothing: it can run',
        )
    return made


def _name(row: Row, split: str, metric: str) -> str:
    best = 'best/' if row.protocol.checkpoint == 'best' else ''
    return f'{best}{split}/{metric}'
