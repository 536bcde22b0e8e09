"""One run in the training loop: its progress, and the files in its folder."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

import peftjax
from peftjax.interop.folder import trees
from peftjax.interop.folder.read import read_arrays
from peftjax.interop.folder.write import Saver
from peftjax.train.files import write_whole
from peftjax.train.run import Run
from peftjax.train.settings import SettingsError
from peftjax.train.step import TrainState
from peftjax.train.task import Beside
from peftjax.train.trackers.log import flush_metrics
from peftjax.train.trackers.trackers import Trackers

ADAPTER, LAST, PEFT = 'adapter', 'adapter_last', 'adapter_peft'


class Best(NamedTuple):
    """The best evaluation so far.

    Attributes:
        step: the step of the evaluation.
        value: its value of the score that chooses the best adapter.
        scores: its scores of the validation split, by name.
        mark: fingerprint of its adapter.
    """

    step: int
    value: float
    scores: Mapping[str, float]
    mark: str


class Member:
    """A run and its progress.

    Attributes:
        run: its parts.
        name: the name of its folder, and its name in messages.
        folder: its folder; None if nothing is written.
        state, beside: its initial state, and everything that it does not train.
        scores: the latest scores of the validation split.
        best: the best evaluation so far; None before the first.
        best_adapter: the adapter of the best evaluation, if no folder holds it.
        products: FLOPs of the matrix products of all its steps so far.
        summary: a summary of the parameters that it trains.
    """

    def __init__(
        self, run: Run, folder: Path | None, trackers: Trackers | None = None, name: str = 'run'
    ):
        self.run, self.folder, self.name = run, folder, name
        state, beside = run.start()
        self.state: TrainState = state
        self.beside: Beside = beside
        self.scores: dict[str, float] = {}
        self.best: Best | None = None
        self.best_adapter: Any = None
        self.products = 0.0
        self.summary = peftjax.summary(run.transform, run.model)
        # The saver reads the values of the model, so it is made before they are given up.
        self._save = _saver(run, state.adapter, beside) if folder is not None else None
        self._trackers = Trackers(()) if trackers is None else trackers

    @property
    def unsaved(self) -> str | None:
        """Why its adapter cannot be written; None if it can."""
        return self._save if isinstance(self._save, str) else None

    def open(self, done: int) -> None:
        """Opens its folder and trackers, without the numbers of steps after `done`."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.run.description, indent=2) + '\n'
            write_whole(self.folder / 'config.json', text)
            self._trackers.open(self.folder, self.run.description, done)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers of a step to the trackers."""
        self._trackers.write(step, values)

    def flush(self) -> None:
        """Waits until its log is on the disk, so that a checkpoint is never ahead of it."""
        if self.folder is not None:
            flush_metrics(self.folder)

    def close(self) -> None:
        """Ends the trackers."""
        self._trackers.close()

    def evaluated(self, step: int, scores: Mapping[str, float], adapter: Any) -> None:
        """Takes scores of the validation split, and keeps the adapter if they are the best.

        Raises:
            SettingsError: the score that chooses is not among the scores.
        """
        self.scores = dict(scores)
        name = self.run.best.removeprefix('-')
        if f'validation/{name}' not in scores:
            found = ', '.join(each.removeprefix('validation/') for each in scores)
            raise SettingsError(f'best is {self.run.best!r}; the scores are {found}')
        value = scores[f'validation/{name}']
        sign = -1.0 if self.run.best.startswith('-') else 1.0
        better = self.best is None or sign * value > sign * self.best.value
        if math.isfinite(value) and better:
            mark = self.keep(ADAPTER, adapter)
            self.best = Best(step, value, dict(scores), mark)

    def keep(self, where: str, adapter: Any) -> str:
        """Writes an adapter, or holds the best one if none is written; returns its fingerprint."""
        whole = _on_host(adapter)
        if self.folder is not None and isinstance(self._save, Saver):
            self._save(self.folder / where, whole)
        elif where == ADAPTER:
            self.best_adapter = whole
        return _mark(whole)

    def best_written(self, state: TrainState) -> Any:
        """The best adapter, or the last one, that of `state`, if no evaluation chose."""
        if self.best is None:
            return state.adapter if self.best_adapter is None else self.best_adapter
        if jax.process_count() == 1:
            return self._held(state.adapter)
        # After a resume, no process holds the best adapter: the first one reads it from the folder.
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.adapter)
        held = self._held(like) if jax.process_index() == 0 else like
        return multihost_utils.broadcast_one_to_all(held)

    def _held(self, like: Any) -> Any:
        if self.best_adapter is not None or self.folder is None:
            return self.best_adapter
        return trees.refill(like, read_arrays(self.folder / ADAPTER).adapter)

    def about(self) -> dict[str, Any]:
        """The values of the run that a checkpoint holds."""
        best = None if self.best is None else self.best._asdict()
        return {'scores': self.scores, 'best': best, 'products': self.products}

    def load(self, about: Mapping[str, Any]) -> None:
        """Takes the values of the run that a checkpoint holds.

        The best adapter is in the folder, where a better one may have replaced it after the
        checkpoint. Then the best evaluation starts afresh, and the repeated steps find the better
        one again. All processes decide alike.
        """
        self.scores, self.products = dict(about['scores']), about['products']
        best = None if about['best'] is None else Best(**about['best'])
        lost = best is not None and jax.process_index() == 0 and not self._has(best)
        if jax.process_count() > 1:
            lost = bool(multihost_utils.broadcast_one_to_all(np.asarray(lost)))
        self.best = None if lost else best

    def _has(self, best: Best) -> bool:
        if self.folder is None:
            return False
        try:
            arrays = read_arrays(self.folder / ADAPTER).adapter
            return _mark(trees.refill(self.state.adapter, arrays)) == best.mark
        except (OSError, ValueError, KeyError):
            return False


def _saver(run: Run, adapter: Any, beside: Beside) -> Saver | str:
    try:
        return Saver(run.model, run.transform, adapter, beside.frozen)
    except ValueError as error:
        return str(error)


def _mark(adapter: Any) -> str:
    """A fingerprint of an adapter on the host."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(adapter):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def _on_host(adapter: Any) -> Any:
    """A copy of the whole adapter on the host, since a step may overwrite the device's arrays."""

    def one(leaf: jax.Array) -> np.ndarray:
        if not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.array(leaf)

    return jax.tree.map(one, adapter)
