"""A sweep's folder: its runs and groups, who works on them, and their results."""

import contextlib
import json
import math
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
from pyarrow import csv, parquet

from peftjax.sweep.groups import Group
from peftjax.sweep.names import show
from peftjax.sweep.rows import SweepRun
from peftjax.train.artifacts import read_result
from peftjax.train.files import new_file, read_object, write_whole
from peftjax.train.redo import take_back
from peftjax.train.trackers.log import read_metrics
from peftjax.train.wholeness import differences

_ABOUT = 'sweep.json'


class SweepFolder:
    """The folder of one sweep. Any number of processes may work in it.

    sweep.json says what it holds; `runs/<name>` is the folder of a run, `groups/<name>` holds the
    checkpoints of runs that train together; results.parquet and results.csv have a line each run.
    """

    def __init__(self, path: Path):
        self.path = path
        self.runs = path / 'runs'

    @property
    def begun(self) -> bool:
        """Whether a sweep was begun here."""
        return (self.path / _ABOUT).exists()

    def begin(
        self,
        rows: Sequence[SweepRun],
        groups: Iterable[Sequence[str]],
        config: str,
        sweep: str,
        score: str = '',
    ) -> dict[str, list[str]]:
        """Describes the sweep in the folder, or adds new runs and groups to it.

        Args:
            rows: the runs of the sweep, or the runs that are known so far.
            groups: names of the runs of each, for runs that are in no group of the folder yet.
            config, sweep: the file and the function that the runs come from.
            score: the score that compares runs; the report uses the newest one.

        Returns:
            All groups of the folder. If another process was faster, these are its groups.

        Raises:
            ValueError: the folder was begun with other runs.
        """
        given = {
            row.name: {'changes': row.changes, 'config': row.settings.to_dict()} for row in rows
        }
        given = json.loads(json.dumps(given))
        if (self.path / 'checkpoints').exists():
            raise ValueError(f'{self.path} holds a run: choose another --workdir for the sweep')
        self.path.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.path / '.lock'):
            new = {'config': config, 'sweep': sweep, 'score': '', 'commit': commit()}
            about = self.about() if self.begun else {**new, 'runs': {}, 'groups': {}}
            held = {name: run for name, run in about['runs'].items() if name in given}
            changed = differences(held, {name: given[name] for name in held})
            if changed:
                raise ValueError(
                    f'{self.path} holds another sweep ({"; ".join(changed[:3])}): choose another '
                    '--workdir, or give the same config and runs'
                )
            about['runs'] |= given
            about['score'] = score or about['score']
            grouped = {name for names in about['groups'].values() for name in names}
            for names in groups:
                if not grouped.intersection(names):
                    about['groups'][f'{len(about["groups"]):03d}'] = list(names)
            write_whole(self.path / _ABOUT, json.dumps(about, indent=2) + '\n')
        return about['groups']

    def groups(self) -> dict[str, list[str]]:
        """Names of runs by the name of their group; empty for a new folder."""
        return self.about()['groups'] if self.begun else {}

    def over(self, runs: Iterable[str]) -> bool:
        """Whether each of the runs has a result."""
        return all(self.result(run) is not None for run in runs)

    def about(self) -> dict[str, Any]:
        """The description that `begin` wrote.

        Raises:
            CheckpointError: the file is damaged, by name.
        """
        return read_object(self.path / _ABOUT, most=2**28)

    def result(self, run: str) -> dict[str, Any] | None:
        """The result of a run; None until it is over.

        Raises:
            CheckpointError: its file is damaged, by name.
        """
        return read_result(self.runs / run)

    def take_back(self) -> dict[str, str]:
        """Drops the results of runs whose folders are damaged, so that they are trained again.

        Returns:
            The damage, by the name of the run.
        """
        names = self.about()['runs'] if self.begun else ()
        found = {name: take_back(self.runs / name) for name in names}
        return {name: why for name, why in found.items() if why is not None}

    def progress(self, run: str) -> dict[str, Any]:
        """The state of a run: its status, its last logged step, loss and scores, and its result."""
        found: dict[str, Any] = {'status': 'waiting'}
        for line in read_metrics(self.runs / run):
            found |= {'status': 'training', **line}
            found['loss'] = line.get('train/loss', found.get('loss', math.nan))
        return found | (self.result(run) or {})

    @contextlib.contextmanager
    def claim(self, group: Group) -> Iterator[bool]:
        """Whether this process holds the group while the context is open.

        A lock of the operating system, so it is released however its holder ends. Also False if
        every run of the group has a result.
        """
        folder = self.path / 'groups' / group.name
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(filelock.FileLock(folder / '.lock', blocking=False))
            except filelock.Timeout:
                mine = False
            else:
                mine = not self.over(group.names)
            yield mine

    def results(self) -> list[dict[str, Any]]:
        """One line for each run, in the order of the sweep: its changes and its results.

        Its status is 'waiting' until there is a result.
        """
        about = self.about()
        lines = []
        for name, run in about['runs'].items():
            result = self.result(name) or {'status': 'waiting'}
            metrics = read_metrics(self.runs / name)
            lines.append(
                {
                    'run': name,
                    **{f'config.{field}': value for field, value in run['changes'].items()},
                    'seed': run['config']['seed'],
                    'method': show(run['config']['methods']),
                    **result,
                    'last_step': int(metrics[-1]['step']) if metrics else 0,
                    'commit': about['commit'],
                    'config': json.dumps(run['config'], sort_keys=True),
                }
            )
        return lines

    def write_results(self) -> list[dict[str, Any]]:
        """Writes results.parquet and results.csv, and gives their lines."""
        lines = self.results()
        names = list(dict.fromkeys(name for line in lines for name in line))
        columns = {name: _column([line.get(name) for line in lines]) for name in names}
        table = pa.table(columns)
        with filelock.FileLock(self.path / '.lock'):
            for suffix, write in (('parquet', parquet.write_table), ('csv', csv.write_csv)):
                with new_file(self.path / f'results.{suffix}') as new:
                    write(table, new)
        return lines


def _column(values: Sequence[Any]) -> pa.Array:
    """A column of one type: numbers and texts as they are, anything else as its JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array(values, pa.float64())
    if len(kinds) > 1 or kinds - {int, float, str, bool}:
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pa.array(values)


def commit() -> str:
    """The commit of the running code; '' outside a repository."""
    command = ['git', '-C', str(Path(__file__).parent), 'rev-parse', 'HEAD']
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ''
    return found.stdout.strip() if found.returncode == 0 else ''


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many runs have each status."""
    counts: dict[str, int] = {}
    for line in lines:
        counts[line['status']] = counts.get(line['status'], 0) + 1
    return counts
