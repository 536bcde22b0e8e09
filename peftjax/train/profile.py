"""A trace of a few steps, for TensorBoard's profiler."""

from pathlib import Path
from typing import Any

import jax

_FIRST, _STEPS = 10, 3


class Trace:
    """Traces three steps into a folder: the tenth that it sees, and two more."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._seen = 0
        self._running = False

    def before(self, state: Any) -> None:
        """Begins or ends the trace before a step."""
        self._seen += 1
        if self._seen == _FIRST:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif self._running and self._seen >= _FIRST + _STEPS:
            self.stop(state)

    def stop(self, state: Any) -> None:
        """Ends the trace, if it is running, when the steps in it are done."""
        if self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False
