"""The steps since each run's last log line: means, speeds, and whether all numbers are finite.

Metrics stay on the devices until a run is read, so that no step waits for the one before.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Part = tuple[np.ndarray, Mapping[str, Any]]
"""Places of some runs, and their metrics of a step: by name, an array in the order of places."""


class Bad(NamedTuple):
    """A step whose loss or gradient is not finite."""

    step: int
    loss: float
    grad_norm: float


class NonFiniteError(RuntimeError):
    """The loss or its gradient became NaN or infinite."""


class StepWindow:
    """The steps since each run's last log line.

    runs: number of runs.
    peak: FLOPs that all devices together can do in a second; None if unknown.
    """

    def __init__(self, runs: int, peak: float | None = None):
        self._runs, self._peak = runs, peak
        self._steps: list[tuple[int, Any, np.ndarray, float]] = []
        self._read = [0] * runs
        self._started = [time.perf_counter()] * runs

    def add(self, step: int, parts: Sequence[Part], tokens: np.ndarray, flops: float = 0.0) -> None:
        """Adds a step: its number, metrics, the tokens that each run read, and a run's FLOPs."""
        self._steps.append((step, parts, tokens, flops))

    def read(self, place: int) -> tuple[dict[str, float], Bad | None]:
        """A run's means and speeds since it was read last, and its first step that is not finite.

        Speeds are `steps_per_second`, `tokens_per_second` and, if FLOPs were counted,
        `tflops_per_second` of the program's products. `mfu` is their share of the peak, if known.
        """
        self._steps = [(n, self._by_name(m), tokens, f) for n, m, tokens, f in self._steps]
        steps = self._steps[self._read[place] :]
        seconds = time.perf_counter() - self._started[place]
        columns = {
            name: [float(metrics[name][place]) for _, metrics, *_ in steps] for name in steps[0][1]
        }
        found = zip((n for n, *_ in steps), columns['loss'], columns['grad_norm'], strict=True)
        bad = (Bad(*each) for each in found if not math.isfinite(each[1] + each[2]))
        self._read[place] = len(self._steps)
        means = {name: float(np.mean(column)) for name, column in columns.items()}
        means['steps_per_second'] = len(steps) / seconds
        means['tokens_per_second'] = sum(float(tokens[place]) for *_, tokens, _ in steps) / seconds
        rate = sum(flops for *_, flops in steps) / seconds
        if rate:
            means['tflops_per_second'] = rate / 1e12
        if rate and self._peak is not None:
            means['mfu'] = rate / self._peak
        return means, next(bad, None)

    def go_on(self, places: Sequence[int]) -> None:
        """Starts the time anew for those of the training runs that were just read."""
        for place in places:
            if self._read[place] == len(self._steps):
                self._started[place] = time.perf_counter()
        read = min((self._read[place] for place in places), default=0)
        self._steps = self._steps[read:]
        self._read = [max(0, number - read) for number in self._read]

    def _by_name(self, parts: Any) -> dict[str, np.ndarray]:
        """Metrics of all runs in their order, on the host."""
        if isinstance(parts, dict):
            return parts
        found: dict[str, np.ndarray] = {}
        for places, metrics in jax.device_get(parts):
            for name, values in metrics.items():
                found.setdefault(name, np.zeros(self._runs))[places] = values
        return found
