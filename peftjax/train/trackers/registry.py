"""Trackers by name."""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from peftjax.train.optional import library
from peftjax.train.settings import SettingsError
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
"""The trackers that are known by name: functions of modules of that name, beside this one."""


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
    if name in TRACKERS:
        needs, extra = TRACKERS[name]
        library(needs, extra, f'the tracker {name!r}')
        return _function(f'{__package__}.{name}:{name}')
    if ':' not in name:
        close = difflib.get_close_matches(name, TRACKERS, n=1, cutoff=0)
        raise SettingsError(
            f'no tracker {name!r}; near names: {close}; one of your own is written as '
            'package.module:function'
        )
    return _function(name)


def _function(path: str) -> Any:
    module, _, name = path.partition(':')
    try:
        found: Any = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise SettingsError(f'tracker {path!r}: {error}') from None
    if not callable(found):
        raise SettingsError(f'tracker {path!r}: {module} has no function {name!r}')
    return found
