"""Runs the seeds of a published result and compares the number with the published one."""

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
    """A finished run, with its scores by name."""

    @property
    def result(self) -> Mapping[str, Any]: ...


Train = Callable[[Settings, Path, Console], Finished]
"""`train(settings, workdir, console)`, such as `peftjax.train.train`."""


class Result(NamedTuple):
    """The runs of a row, in the unit of its published number.

    Attributes:
        row: of the table.
        values: for each seed, the score that `row.published` names.
        trainable: the number of trained parameters of a run, including a new head.
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
        """The standard deviation over seeds; NaN for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def show(self) -> Table:
        """The result as a table to print."""
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
        given = '' if trainable is None else f'{trainable:,} without a new head'
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
    """Trains every seed of a row, one after another.

    If the row starts from the adapter of another row, that row is trained first, with seed 0. With
    `peftjax.train.train`, finished runs are not repeated, and a stopped run goes on.

    Args:
        row: of a table.
        workdir: will hold the folder `<row>/seed_<n>` of each seed.
        console: where each run shows its progress.
        train: trains by settings, such as `peftjax.train.train`.
        seeds: how many; None for the number in the protocol.
        changes: of settings, by dotted names, for every run.

    Raises:
        SettingsError: a run has no score of the published kind, or settings do not fit.
    """
    folder, changes = Path(workdir) / row.key, dict(changes or {})
    if row.start is not None and 'init_from' not in changes:
        first = Path(workdir) / row.start.key / 'seed_0'
        # The other row has its own data.
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
    """The score of a run that corresponds to the published number, as a fraction.

    Raises:
        SettingsError: the run has no score of this kind.
    """
    pattern = _name(row, row.published.split, row.published.metric)
    found = [value for name, value in result.items() if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        scores = ', '.join(name for name in result if '/' in name)
        raise SettingsError(f'{row.key} needs the score {pattern}; the run has {scores or "none"}')
    return statistics.fmean(found)


def score_name(row: Row) -> str:
    """The score in words, such as 'validation accuracy of the best checkpoint'."""
    published = row.published
    split = published.split.replace('_*', ' sets, mean')
    return f'{split} {published.metric} of the {row.protocol.checkpoint} checkpoint'


def printed(row: Row) -> str:
    """The published number with its spread and its source."""
    published, paper = row.published, row.paper
    if published.value is None:
        return 'no number could be read'
    spread = '' if published.spread is None else f' ± {published.spread:g}'
    where = f'arXiv:{paper.arxiv}' if paper.arxiv else paper.url
    return f'{published.value:g}{spread} ({where}, {paper.table})'


def listing(rows: Sequence[Row], missing: Callable[[Row], Sequence[str]]) -> Table:
    """Every row with its number, and what it needs that is not here."""
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
