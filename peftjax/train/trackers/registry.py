"""Trackers by name."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from peftjax.train.dotted import find_function
from peftjax.train.optional import library
from peftjax.train.trackers.trackers import TrackerFactory, Trackers


class Known(NamedTuple):
    """A tracker of ours: the module that it needs, and the extra that installs it."""

    needs: str
    extra: str


TRACKERS: Mapping[str, Known] = {
    'tensorboard': Known('tensorboardX', 'train'),
    'wandb': Known('wandb', 'wandb'),
    'mlflow': Known('mlflow', 'mlflow'),
    'trackio': Known('trackio', 'trackio'),
}
"""The known trackers: each is a function in the module of its name, beside this module."""


def trackers_of(names: Sequence[str]) -> Trackers:
    """The trackers of these names, and metrics.jsonl, as one.

    Raises:
        SettingsError: see `find_tracker`.
        ValueError: the library of a tracker is not installed.
    """
    return Trackers([find_tracker(name) for name in names])


def find_tracker(name: str) -> TrackerFactory:
    """The function that opens a tracker: one of `TRACKERS`, or 'package.module:function'.

    Raises:
        SettingsError: no such name or function.
        ValueError: the library of the tracker is not installed.

    Example:
        >>> find_tracker('tensorboard').__name__
        'tensorboard'
        >>> find_tracker('tensorbord')
        Traceback (most recent call last):
        peftjax.train.typed.SettingsError: no tracker 'tensorbord'; near names: ...
    """
    if name not in TRACKERS:
        return find_function('tracker', name, TRACKERS)
    needs, extra = TRACKERS[name]
    library(needs, extra, f'the tracker {name!r}')
    # The module is imported here: it imports a library that is needed by this tracker alone.
    return find_function('tracker', f'{__package__}.{name}:{name}', ())
