"""Scores of a split: totals over its batches, and metrics of the outputs of its examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from peftjax.train.data.batches import eval_batches, row_sizes
from peftjax.train.placement import Placement
from peftjax.train.task import Batch, Outputs, Task

Scored = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Totals of a batch, and the outputs for each of its examples."""


class SplitScores:
    """Collects totals and outputs of several runs on a split, and computes their scores.

    A batch's last rows may be copies that only fill it; their outputs are dropped.
    """

    def __init__(self, task: Task, runs: int):
        self._task, self._runs = task, runs
        self._totals: dict[str, np.ndarray] = {}
        self._kept: list[dict[str, list[np.ndarray]]] = [{} for _ in range(runs)]

    def add(self, places: Sequence[int], scored: Scored, count: int) -> None:
        """Adds a batch: its runs' places, their totals and outputs, and how many rows are real."""
        totals, kept = scored
        for name, values in totals.items():
            total = self._totals.setdefault(name, np.zeros(self._runs))
            total[list(places)] += np.asarray(values, np.float64)
        for name, values in kept.items():
            for place, rows in zip(places, _host(values), strict=True):
                self._kept[place].setdefault(name, []).extend(rows[:count])

    def outputs(self, place: int) -> Outputs:
        """The outputs of a run for all examples, in the order of the batches."""
        return self._kept[place]

    def scores(self, place: int) -> dict[str, float]:
        """A run's means of totals, and its metrics, by name."""
        weight = self._totals['weights'][place] or 1.0
        means = {
            name: float(total[place] / weight)
            for name, total in self._totals.items()
            if name != 'weights'
        }
        metrics = {m.name: float(m.compute(self._kept[place])) for m in self._task.metrics}
        return {**means, **metrics}


def score(
    task: Task,
    split: str,
    placement: Placement,
    runs: int,
    score_batch: Callable[[Batch, int], Sequence[tuple[Sequence[int], Scored]]],
) -> SplitScores:
    """The totals and outputs of some runs on a split.

    Args:
        task: the task whose rows are read.
        split: the name of the split.
        placement: decides which rows of a batch this process reads.
        runs: number of runs.
        score_batch: from a batch and its size to places of runs with their totals and outputs.
    """
    rows, size = task.splits[split], task.eval_batch_size
    found = SplitScores(task, runs)
    batches = eval_batches(rows, batch_size=size, lengths=task.lengths, local=placement.local(size))
    for number, batch in enumerate(batches):
        count = min(size, len(rows) - number * size)
        whole = size if 'weights' in batch else count
        for places, scored in score_batch(placement.batch(batch, whole), whole):
            found.add(places, scored, count)
    return found


def in_order(task: Task, split: str, outputs: Outputs) -> Outputs:
    """The outputs for the examples of a split, in the order of its rows.

    Batches hold the shortest rows first.
    """
    order = np.argsort(row_sizes(task.splits[split]), kind='stable')
    back = np.argsort(order, kind='stable')
    return {name: [rows[place] for place in back] for name, rows in outputs.items()}


def _host(values: Any) -> np.ndarray:
    """The whole array on this host; other processes may hold parts of it."""
    if isinstance(values, jax.Array) and not values.is_fully_addressable:
        values = multihost_utils.process_allgather(values, tiled=True)
    return np.asarray(values)
