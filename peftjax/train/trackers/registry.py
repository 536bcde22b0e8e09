"""Trackers by name."""

from collections.abc import Sequence

from peftjax.train.trackers.trackers import Trackers


def trackers_of(names: Sequence[str]) -> Trackers:
    """The trackers of these names, as one."""
    del names
    return Trackers(())
