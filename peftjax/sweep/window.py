"""The steps since the last log line of each row of a group: means, speeds, and whether finite.

Metrics stay on the devices until a row is read, as in `window.StepWindow` for a run by itself.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


class RowWindow:
    """The steps since each row's last log line."""

    def __init__(self, rows: int):
        self._steps: list[tuple[int, Any, np.ndarray]] = []
        self._rows = rows
        self._read = [0] * rows
        self._started = [time.perf_counter()] * rows

    def add(self, step: int, parts: Sequence[tuple[np.ndarray, Any]], tokens: np.ndarray) -> None:
        """Adds a step: its number, what `Together.step` gave, and the tokens of all rows."""
        self._steps.append((step, parts, tokens))

    def keep(self, places: Sequence[int]) -> None:
        """Only these rows are in the program from now on, in this order."""
        self._steps = [
            (
                number,
                {name: values[places] for name, values in self._by_name(metrics).items()},
                tokens[places],
            )
            for number, metrics, tokens in self._steps
        ]
        self._rows = len(places)
        self._read = [self._read[place] for place in places]
        self._started = [self._started[place] for place in places]

    def go_on(self, places: Sequence[int]) -> None:
        """Of the rows that train, those that were read are timed from now on."""
        for place in places:
            if self._read[place] == len(self._steps):
                self._started[place] = time.perf_counter()
        read = min((self._read[place] for place in places), default=0)
        self._steps = self._steps[read:]
        self._read = [max(0, number - read) for number in self._read]

    def read(self, place: int) -> tuple[dict[str, float], int | None]:
        """A row's means and speeds, and its first step that is not finite; then it starts anew."""
        self._steps = [(n, self._by_name(m), tokens) for n, m, tokens in self._steps]
        steps_here = self._steps[self._read[place] :]
        seconds = time.perf_counter() - self._started[place]
        columns = {
            name: [float(metrics[name][place]) for _, metrics, _ in steps_here]
            for name in steps_here[0][1]
        }
        bad = None
        for index, (number, _, _) in enumerate(steps_here):
            if not math.isfinite(columns['loss'][index] + columns['grad_norm'][index]):
                bad = number
                break
        self._read[place] = len(self._steps)
        tokens = sum(float(tokens[place]) for _, _, tokens in steps_here)
        means = {name: float(np.mean(column)) for name, column in columns.items()}
        means |= {
            'steps_per_second': len(steps_here) / seconds,
            'tokens_per_second': tokens / seconds,
        }
        return means, bad

    def _by_name(self, parts: Any) -> dict[str, np.ndarray]:
        """Metrics of all rows in their order, on the host."""
        if isinstance(parts, dict):
            return parts
        found: dict[str, np.ndarray] = {}
        for places, metrics in jax.device_get(parts):
            for name, values in metrics.items():
                found.setdefault(name, np.zeros(self._rows))[places] = values
        return found
