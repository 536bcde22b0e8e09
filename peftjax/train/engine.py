"""Computes the steps and the scores of runs: here of one run, in `peftjax.sweep` of many."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import grain
import jax
import numpy as np

import peftjax
from peftjax.train.data import batches as data
from peftjax.train.placement import Placement
from peftjax.train.run import Run
from peftjax.train.scoring import Scored, SplitScores, score
from peftjax.train.step import TrainState
from peftjax.train.task import Batch, Beside, Trained
from peftjax.train.window import Part

_NONE: Mapping[int, Any] = MappingProxyType({})


class Engine(Protocol):
    """Computes steps of some runs, each known by its place: a number from 0 on.

    Attributes:
        placement: the devices that hold the arrays.
    """

    placement: Placement

    def batches(self) -> grain.DatasetIterator[Any]:
        """The training batches; `step` takes the `rows` of each."""
        ...

    def step(self, rows: Any) -> list[Part]:
        """Takes one step of every run that has not left."""
        ...

    def tokens(self, tokens: Any) -> np.ndarray:
        """The number of tokens of a batch, for each run."""
        ...

    def flops(self, place: int = 0) -> float:
        """FLOPs of the matrix products in the last step of a run; 0 if they are not counted."""
        ...

    def score(self, split: str, adapters: Mapping[int, Any] = _NONE) -> SplitScores:
        """The scores of every run on a split; `adapters` replaces adapters of some, by place."""
        ...

    def state(self, place: int) -> TrainState:
        """The state of a run, as it would be if the run trained alone."""
        ...

    def trained(self, place: int) -> Trained:
        """The trained model of a run, for evaluators."""
        ...

    def leave(self, places: Sequence[int], step: int) -> None:
        """These runs need no more steps."""
        ...

    def snapshot(self, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The content of a checkpoint: arrays, and values that JSON can hold."""
        ...

    def load(self, state: TrainState, about: dict[str, Any]) -> None:
        """Goes on from a snapshot; `state` has the structure that `snapshot` returns."""
        ...


class Alone:
    """`Engine` of one run, on one device or on a mesh.

    Its programs are compiled at their first call. A run that differs from another only in its
    numbers, its seed and its data can use the programs of the other.
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        beside: Beside,
        placement: Placement,
        *,
        traced: bool = False,
        like: 'Alone | None' = None,
    ):
        """Takes arrays that are on their devices, and prepares the programs.

        Args:
            run: may be without the values of its model.
            state, beside: the results of `run.start`, on their devices.
            placement: these devices.
            traced: whether the run's numbers are arguments of its program. Some optimisers need
                them as constants.
            like: a traced engine whose programs this one uses.
        """
        self.run, self.placement = run, placement
        self._state, self._beside = state, beside
        self._costs: dict[Any, float] = {}
        self._flops = 0.0
        self._numbers: Any = run.numbers if traced or like else {}
        self._pure = run.step if traced or like else functools.partial(_fixed, run)
        if like is None:
            self._step = placement.step(self._pure, state)
            self._scored = placement.compiled(run.scored)
        else:
            self._step, self._scored = like._step, like._scored

    def batches(self) -> grain.DatasetIterator[Any]:
        task = self.run.task
        return data.train_batches(
            task.splits['train'],
            batch_size=task.batch_size,
            lengths=task.lengths,
            seed=self.run.seed,
            steps=self.run.steps,
            local=self.placement.local(task.batch_size),
        )

    def step(self, rows: Any) -> list[Part]:
        batch = self.placement.batch(rows, self.run.task.batch_size)
        args = self._numbers, self._state, self._beside, batch
        self._flops = self._cost(args)
        self._state, metrics = self._step(*args)
        return [(np.zeros(1, int), metrics)]

    def tokens(self, tokens: Any) -> np.ndarray:
        return np.asarray([tokens])

    def flops(self, place: int = 0) -> float:
        del place
        return self._flops

    def _cost(self, args: Any) -> float:
        """FLOPs of the products in a step, counted once for each shape of a batch."""
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(args[-1]))
        if shapes not in self._costs:
            bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args[1:])
            step = functools.partial(self._pure, args[0])
            self._costs[shapes] = peftjax.plan.flops(step, *bare)
        return self._costs[shapes]

    def score(self, split: str, adapters: Mapping[int, Any] = _NONE) -> SplitScores:
        adapter = adapters.get(0, self._state.adapter)

        def one(batch: Batch, size: int) -> list[tuple[list[int], Scored]]:
            del size
            totals, kept = self._scored(adapter, self._beside, batch)
            return [([0], (totals, {name: values[None] for name, values in kept.items()}))]

        return score(self.run.task, split, self.placement, 1, one)

    def state(self, place: int) -> TrainState:
        del place
        return self._state

    def trained(self, place: int) -> Trained:
        del place
        run, frozen = self.run, self._beside.frozen
        return Trained(run.model, run.transform, self._state.adapter, frozen, run.task)

    def leave(self, places: Sequence[int], step: int) -> None:
        """Does nothing: the loop ends with its only run."""

    def snapshot(self, step: int) -> tuple[TrainState, dict[str, Any]]:
        del step
        return self._state, {}

    def load(self, state: TrainState, about: dict[str, Any]) -> None:
        del about
        self._state = state


def _fixed(run: Run, numbers: Any, state: TrainState, beside: Beside, batch: Batch) -> Any:
    """The step of a run with its numbers as constants of the program."""
    del numbers
    return run.step(run.numbers, state, beside, batch)
