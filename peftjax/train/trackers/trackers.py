"""The interface between a run and the programs that show its numbers."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from peftjax.train.trackers.log import MetricsWriter


class Tracker(Protocol):
    """Takes the numbers of a run.

    Numbers come in the order of the steps. A step may come several times, each time with other
    names.
    """

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        """Takes numbers of a step by name, such as `{'train/loss': 0.5}`."""
        ...

    def close(self) -> None:
        """Ends the writing; afterwards all numbers are stored."""
        ...


TrackerFactory = Callable[[Path, Mapping[str, Any], int], Tracker]
"""`factory(workdir, settings, resumed_from)`: opens a tracker of a run.

settings: plain values, as `Settings.to_dict` gives them. resumed_from: the step that the run
resumes from, 0 for a new run; the tracker then continues its own run.
"""


class Trackers:
    """Sends each number to metrics.jsonl and to all trackers.

    Example:
        >>> folder = getfixture('tmp_path')
        >>> trackers = Trackers(())
        >>> trackers.open(folder, {'lr': 0.1}, 0)
        >>> trackers.write(1, {'train/loss': 0.5})
        >>> trackers.close()
        >>> print((folder / 'metrics.jsonl').read_text(), end='')
        {"step": 1, "train/loss": 0.5}
    """

    def __init__(self, factories: Sequence[TrackerFactory]):
        self._factories = factories
        self._open: list[Tracker] = []

    def open(self, folder: Path, settings: Mapping[str, Any], resumed_from: int) -> None:
        """Opens all trackers, for a run that resumes from a step."""
        self._open = [MetricsWriter(folder, resumed_from)]
        try:
            for make in self._factories:
                self._open.append(make(folder, settings, resumed_from))
        except BaseException:
            self.close()
            raise

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers of a step to all trackers."""
        for tracker in self._open:
            tracker.write(step, values)

    def close(self) -> None:
        """Closes all trackers."""
        with contextlib.ExitStack() as stack:  # Closes the others too if one raises.
            for tracker in reversed(self._open):
                stack.callback(tracker.close)
            self._open = []
