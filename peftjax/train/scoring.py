"""Scores of a split: totals over its batches, and metrics of what was kept of each example."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from peftjax.train.data.batches import eval_batches, row_sizes
from peftjax.train.placement import Placement
from peftjax.train.task import Batch, Outputs, Task

Scored = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Totals of a batch, and what is kept of each of its examples."""


class SplitScores:
    """Collects what several runs make of a split, batch by batch, and gives their scores.

    A batch's last rows may be copies that only fill it: what is kept of them is dropped.
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
        """What was kept of all examples of a run, in the order of the batches."""
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
    """What some runs make of a split.

    Args:
        task: whose rows are read.
        split: of the task.
        placement: which of the rows of a batch this process reads.
        runs: how many there are.
        score_batch: from a batch and its size to the places of runs and what they make of it.
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
    """What was kept of the examples of a split, in the order of its rows.

    Batches hold the shortest rows first.
    """
    order = np.argsort(row_sizes(task.splits[split]), kind='stable')
    back = np.argsort(order, kind='stable')
    return {name: [rows[place] for place in back] for name, rows in outputs.items()}


def _host(values: Any) -> np.ndarray:
    """An array whole on this host, from wherever its parts lie."""
    if isinstance(values, jax.Array) and not values.is_fully_addressable:
        values = multihost_utils.process_allgather(values, tiled=True)
    return np.asarray(values)
