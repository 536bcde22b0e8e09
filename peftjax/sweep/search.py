"""Search: Optuna draws the runs of a sweep, a few at a time, and learns from earlier runs."""

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.modules import function_of
from peftjax.sweep.pruning import Prune, Rung
from peftjax.sweep.rows import Changer, SweepRun
from peftjax.sweep.score import read_score
from peftjax.train.optional import library
from peftjax.train.settings import Settings
from peftjax.train.trackers.log import read_metrics

if TYPE_CHECKING:
    import optuna

SAMPLERS = 'tpe', 'random'


class Runner(Protocol):
    """Trains the runs of a sweep in its folder: `peftjax.sweep.run.Sweep`."""

    @property
    def folder(self) -> SweepFolder: ...

    def run(self, rows: Sequence[SweepRun], prune: Prune, wait: bool) -> None: ...


class Search:
    """Draws runs, and learns from their results.

    A config file says what to draw, in the terms of Optuna:

        def search_rate(trial):
            return {'lr': trial.suggest_float('lr', 1e-4, 1e-2, log=True)}

    The study is not stored. It is drawn again from its seed, and gets the results from the folder
    of the sweep. So it is the same after any interruption, and in every process.
    """

    def __init__(
        self, module: ModuleType, name: str, settings: Settings, sampler: str, score: str, seed: int
    ):
        """Begins a study.

        Args:
            module: the config file.
            name: of its `search_<name>`.
            settings: that the draws change.
            sampler: 'tpe' (Bergstra et al. 2011, as `optuna.samplers.TPESampler`, which counts runs
                without a result as bad ones) or 'random'.
            score: as `read_score` reads it.
            seed: of the sampler.

        Raises:
            ValueError: no such function in the config file; Optuna is not installed.
        """
        self._draw: Callable[[Any], Mapping[str, Any]] = function_of(module, 'search', name)
        self._changer, self._score = Changer(settings), read_score(score)
        optuna = library('optuna', 'search', '--search')
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            direction='minimize' if self._score.smaller else 'maximize',
            sampler=optuna.samplers.RandomSampler(seed=seed)
            if sampler == 'random'
            else optuna.samplers.TPESampler(seed=seed, constant_liar=True),
            pruner=optuna.pruners.MedianPruner(),
        )
        self._states = optuna.trial.TrialState
        self._rows: list[SweepRun] = []
        self._names: dict[str, str] = {}  # a run's config as text -> its name
        self._running: list[tuple[Any, str]] = []  # trials and the names of their runs

    def run(self, sweep: Runner, trials: int, wave: int, prune: Prune) -> list[SweepRun]:
        """Draws, trains and learns until all trials have been drawn; returns the runs.

        A draw that equals an earlier run takes the result of that run.

        Args:
            sweep: trains the runs.
            trials: how many are drawn in all. wave: how many are drawn and trained at a time.
            prune: which runs stop early.

        Raises:
            ValueError: as `run.Sweep.run`; no such field, or a value of another type; a run that
                ended without the score.
        """
        for first in range(0, trials, wave):
            for _ in range(min(wave, trials - first)):
                self._ask()
            sweep.run(self._rows, prune, wait=True)
            self._tell(sweep.folder)
        return self._rows

    def below_median(self, folder: SweepFolder) -> Prune:
        """Stops runs whose best score is worse than the median of ended runs at that step.

        `optuna.pruners.MedianPruner`; it stops none as long as fewer than five runs have ended.
        """
        return functools.partial(self._below_median, folder)

    def _below_median(self, folder: SweepFolder, rung: Rung) -> Collection[str]:
        names = set()
        for trial, name in self._running:
            if name in rung.scores:
                self._report(trial, folder, name, rung.step)
                if trial.should_prune():
                    names.add(name)
        return names

    def _ask(self) -> None:
        trial = self._study.ask()
        changes, name = dict(self._draw(trial)), f'{len(self._rows):03d}'
        made = self._changer.changed(changes, name)
        first = self._names.setdefault(json.dumps(made.to_dict(), sort_keys=True), name)
        if first == name:
            self._rows.append(SweepRun(name, changes, made))
        self._running.append((trial, first))

    def _tell(self, folder: SweepFolder) -> None:
        states = self._states
        for trial, name in self._running:
            result = folder.result(name)
            assert result is not None, name
            self._report(trial, folder, name, result['steps'])
            score = self._score_of(name, result)
            if score is not None:
                self._study.tell(trial, score)
            else:
                ended = states.PRUNED if result['status'] == 'pruned' else states.FAIL
                self._study.tell(trial, state=ended)
        self._running = []

    def _report(self, trial: 'optuna.Trial', folder: SweepFolder, name: str, until: int) -> None:
        """Reports the scores of a run to its trial, up to a step."""
        known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for line in read_metrics(folder.runs / name):
            score = self._score.of(line)
            if score is not None and line['step'] <= until and line['step'] not in known:
                trial.report(score, int(line['step']))

    def _score_of(self, name: str, result: Mapping[str, Any]) -> float | None:
        """The score of a run that trained to its end; None for other runs and for NaN."""
        if result['status'] != 'done':
            return None
        if self._score.name not in result:
            known = ', '.join(each for each in result if each.startswith('validation/'))
            raise ValueError(f'run {name} has no {self._score.name}: give --score one of {known}')
        return self._score.of(result)
