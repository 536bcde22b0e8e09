"""A trace of a few steps, for TensorBoard's profiler."""

from pathlib import Path
from typing import Any

import jax

_STEPS = 3


class Trace:
    """Traces three steps from `start` on into `folder`; nothing where that is None."""

    def __init__(self, folder: Path | None, start: int):
        self._folder = folder
        self._start, self._end = start, start + _STEPS
        self._running = False

    def before(self, step: int, state: Any) -> None:
        """Begins or ends the trace ahead of a step."""
        if self._folder is not None and step == self._start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif self._running and step >= self._end:
            self.stop(state)

    def stop(self, state: Any) -> None:
        """Ends the trace, if it is running, when the steps in it are done."""
        if self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False
