"""The steps since the last log line: their means, their speed, and whether all were finite.

Metrics stay on the device until the window is read, so no step waits for the one before.
"""

import math
import time
from collections.abc import Mapping

import jax
import numpy as np


class NonFiniteError(RuntimeError):
    """The loss or its gradient is no finite number any more."""


class StepWindow:
    """Collects the metrics of steps, and gives their means when read."""

    def __init__(self):
        self._steps: list[tuple[int, Mapping[str, jax.Array], int]] = []
        self._started = time.perf_counter()

    def add(self, step: int, metrics: Mapping[str, jax.Array], tokens: int) -> None:
        """Adds a step: its number, scalars on the device, and the tokens it read."""
        self._steps.append((step, metrics, tokens))

    def read(self) -> dict[str, float]:
        """Means of the metrics, `steps_per_second` and `tokens_per_second`; then starts anew.

        Raises:
            NonFiniteError: the loss or the gradient norm of a step is NaN or infinite; names the
                first such step.
        """
        rows = [
            (step, {name: float(value) for name, value in metrics.items()}, tokens)
            for step, metrics, tokens in self._steps
        ]
        seconds = time.perf_counter() - self._started
        for step, metrics, _ in rows:
            if not (math.isfinite(metrics['loss']) and math.isfinite(metrics['grad_norm'])):
                raise NonFiniteError(
                    f'step {step}: loss {metrics["loss"]}, gradient norm {metrics["grad_norm"]}. '
                    'The newest checkpoint is from before that step; a lower rate often helps, '
                    'for example --config.lr=1e-4'
                )
        means = {name: float(np.mean([row[1][name] for row in rows])) for name in rows[0][1]}
        self.restart()
        return {
            **means,
            'steps_per_second': len(rows) / seconds,
            'tokens_per_second': sum(row[2] for row in rows) / seconds,
        }

    def restart(self) -> None:
        """Forgets the steps and starts the clock again, as after an evaluation."""
        self._steps = []
        self._started = time.perf_counter()
