"""The trackers of one run, as one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from peftjax.train.trackers.log import MetricsWriter


class Tracker(Protocol):
    """Receives the numbers of a run."""

    def write(self, step: int, values: Mapping[str, float], /) -> None: ...

    def close(self) -> None: ...


TrackerFactory = Callable[[Path, Mapping[str, Any], int], Tracker]
"""From a work folder, the settings, and the step that the run goes on from, to a tracker."""


class Trackers:
    """Sends each number to metrics.jsonl and to all trackers."""

    def __init__(self, factories: Sequence[TrackerFactory]):
        self._factories = factories
        self._open: list[Tracker] = []

    def open(self, folder: Path, settings: Mapping[str, Any], resumed_from: int) -> None:
        """Opens all, for a run that goes on from a step."""
        self._open = [MetricsWriter(folder, resumed_from)]
        self._open += [make(folder, settings, resumed_from) for make in self._factories]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers of a step to all."""
        for tracker in self._open:
            tracker.write(step, values)

    def close(self) -> None:
        """Ends all."""
        for tracker in self._open:
            tracker.close()
        self._open = []
