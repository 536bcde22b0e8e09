"""The steps since the last log line: their means, their speed, and whether all were finite.

Metrics stay on the device until the window is read, so no step waits for the one before.
"""

import math
import time
from collections.abc import Mapping

import jax
import numpy as np


class NonFiniteError(RuntimeError):
    """The loss or its gradient became NaN or infinite."""


class StepWindow:
    """Collects the metrics of steps, and gives their means when read.

    peak: what all devices together could do in a second, in FLOPs; None where that is not known.
    """

    def __init__(self, peak: float | None = None):
        self._peak = peak
        self._steps: list[tuple[int, Mapping[str, jax.Array], int, float]] = []
        self._started = time.perf_counter()

    def add(
        self, step: int, metrics: Mapping[str, jax.Array], tokens: int, flops: float = 0.0
    ) -> None:
        """Adds a step: its number, scalars on the device, the tokens it read and its FLOPs."""
        self._steps.append((step, metrics, tokens, flops))

    def read(self) -> dict[str, float]:
        """Means of the metrics, and speeds; then starts anew.

        Speeds are `steps_per_second`, `tokens_per_second`, `tflops_per_second` of the program's
        products and, where the devices are known, `mfu`, their share of what is possible.

        Raises:
            NonFiniteError: the loss or the gradient norm of a step is NaN or infinite; names the
                first such step.
        """
        rows = [
            (step, {name: float(value) for name, value in metrics.items()}, tokens)
            for step, metrics, tokens, _ in self._steps
        ]
        seconds = time.perf_counter() - self._started
        for step, metrics, _ in rows:
            if not (math.isfinite(metrics['loss']) and math.isfinite(metrics['grad_norm'])):
                raise NonFiniteError(
                    f'step {step}: loss {metrics["loss"]}, gradient norm {metrics["grad_norm"]}. '
                    'The newest checkpoint is from before that step; a lower rate often helps, '
                    'for example --config.lr=1e-4'
                )
        rate = sum(flops for *_, flops in self._steps) / seconds
        means = {name: float(np.mean([row[1][name] for row in rows])) for name in rows[0][1]}
        self.restart()
        return {
            **means,
            'steps_per_second': len(rows) / seconds,
            'tokens_per_second': sum(row[2] for row in rows) / seconds,
            'tflops_per_second': rate / 1e12,
            **({} if self._peak is None else {'mfu': rate / self._peak}),
        }

    def restart(self) -> None:
        """Forgets the steps and starts the clock again, as after an evaluation."""
        self._steps = []
        self._started = time.perf_counter()
