"""Asynchronous successive halving: compares a run with all runs that reached its rung so far."""

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import filelock

from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.pruning import Rung, best_first, level_of
from peftjax.sweep.score import Score, read_score
from peftjax.train.files import read_object, write_whole

_RUNGS = 'rungs.json'


class AsynchronousHalving(NamedTuple):
    """Asynchronous successive halving (ASHA) across all groups of a sweep.

    Rung `k` is at score number η^k. When m runs have reached it, an arriving run continues if it is
    among the best `⌊m / η⌋` (at least one); otherwise it stops. So no run waits: early runs are
    compared with few others. Runs that arrive together, such as the runs of a group, all count in
    m.

    Source: Li et al. (2018), https://arxiv.org/abs/1810.05934, algorithm 2. There a run that is not
    promoted pauses, and goes on once enough worse ones came after it. Here it stops for good, as in
    Ray Tune and in Optuna: its group goes on without it, and has its place for others.

    `rungs.json` in the sweep's folder holds the arrivals, in order, and the decisions. It is read
    and written under a lock, so that any number of processes decide one after another. Decisions
    stay: a group that was killed and arrives again gets the same decision.

    Attributes:
        eta: η, at least 2. score: as `peftjax.sweep.score.read_score` reads it.
        folder: of the sweep.

    Example:
        >>> halving = AsynchronousHalving(2, 'f1', SweepFolder(getfixture('tmp_path')))
        >>> def arrive(**scores):
        ...     named = {name: {'validation/f1': value} for name, value in scores.items()}
        ...     return sorted(halving(Rung(10, 1, len(named), named)))
        >>> arrive(a=0.5), arrive(b=0.4, c=0.6), arrive(d=0.55)
        ([], ['b'], [])
    """

    eta: int
    score: str
    folder: SweepFolder

    def __call__(self, rung: Rung) -> Collection[str]:
        """The names of the runs that stop.

        Raises:
            ValueError: no run of the rung has the score; the folder's rungs are of another η or
                another score; runs of the sweep are not scored equally often.
        """
        level = level_of(rung.number, self.eta)
        if level is None or not rung.scores:
            return ()
        score = read_score(self.score)
        best_first(rung.scores, score)  # raises before anything is stored
        self._check()
        with filelock.FileLock(self.folder.path / '.rungs.lock'):
            held = self._read()
            place = held['rungs'].setdefault(str(rung.number), {'scores': {}, 'stopped': []})
            new = {name: each for name, each in rung.scores.items() if name not in place['scores']}
            if new:
                place['scores'] |= {name: score.of(new[name]) for name in sorted(new)}
                place['stopped'] += self._stopped(place['scores'], new, score)
                write_whole(self.folder.path / _RUNGS, json.dumps(held, indent=2) + '\n')
        return {name for name in rung.scores if name in place['stopped']}

    def _stopped(
        self, scores: Mapping[str, float | None], new: Collection[str], score: Score
    ) -> list[str]:
        """Of the runs that just arrived, those that are not among the best of all."""
        finite = {n: {} if each is None else {score.name: each} for n, each in scores.items()}
        best = sorted(finite, key=lambda name: (*score.order(finite[name]), name))
        return [name for name in best[max(1, len(best) // self.eta) :] if name in new]

    def _check(self) -> None:
        runs = self.folder.about()['runs'] if self.folder.begun else {}
        first: dict[str, str] = {}
        for name, run in runs.items():
            first.setdefault(run['config']['eval_every'], name)
        if len(first) > 1:
            (one, a), (other, b) = list(first.items())[:2]
            raise ValueError(
                f'run {a} is scored every {one!r} and run {b} every {other!r}: rungs count scores, '
                'so give all runs the same eval_every'
            )

    def _read(self) -> dict[str, Any]:
        file, score = self.folder.path / _RUNGS, read_score(self.score)
        mine = {'eta': self.eta, 'score': score.name, 'smaller': score.smaller}
        if not file.exists():
            return {**mine, 'rungs': {}}
        held = read_object(file, finite=False)
        if not isinstance(held.get('rungs'), dict) or not mine.keys() <= held.keys():
            raise ValueError(f'{file} is damaged: it lacks some of {", ".join(mine)} and rungs')
        theirs = {name: held[name] for name in mine}
        if theirs != mine:
            sign = '-' if held['smaller'] else ''
            raise ValueError(
                f'{file} was made with --halving={held["eta"]} --score={sign}{held["score"]}: use '
                'these again, or choose another --workdir'
            )
        return held
