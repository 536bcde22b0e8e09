"""Refuses settings with numbers and names that no run can have."""

import dataclasses
import difflib
import math
from typing import TYPE_CHECKING

import optax

from peftjax.core.numbers import HELD, is_held
from peftjax.train import cadence
from peftjax.train.typed import SettingsError

if TYPE_CHECKING:
    from peftjax.train.settings import Settings

SCHEDULES = ('linear', 'cosine', 'constant')


def check_ranges(settings: 'Settings') -> None:
    """Refuses numbers and names that no run can have, before anything is loaded."""
    data, mesh = settings.data, settings.mesh
    rates = {f'rates.{name}': rate for name, rate in settings.rates.items()}
    positive = {
        'lr': settings.lr,
        'accumulate': settings.accumulate,
        'data.batch_size': data.batch_size,
        'data.eval_batch_size': data.eval_batch_size,
        **{f'data.lengths[{i}]': length for i, length in enumerate(data.lengths)},
        **{f'mesh.{n}': size for n, size in dataclasses.asdict(mesh).items()},
        **rates,
    }
    at_least_0 = {
        'warmup': settings.warmup,
        'clip_norm': settings.clip_norm,
        'data.limit': data.limit,
        'seed': settings.seed,
    }
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise SettingsError(f'{name} is {value!r}; write a number above 0')
    for name, value in at_least_0.items():
        if not (math.isfinite(value) and value >= 0):
            raise SettingsError(f'{name} is {value!r}; write 0 or a number above it')
    for name, value in {'lr': settings.lr, 'clip_norm': settings.clip_norm, **rates}.items():
        if not is_held(value):
            raise SettingsError(f'{name} is {value!r}; write {HELD}')
    for name in ('duration', 'log_every', 'eval_every', 'save_every'):
        try:
            cadence.check(getattr(settings, name))
        except ValueError as error:
            raise SettingsError(f'{name}: {error}') from None
    if settings.schedule not in SCHEDULES:
        raise SettingsError(
            f'schedule is {settings.schedule!r}; write one of {", ".join(SCHEDULES)}'
        )
    if not callable(getattr(optax, settings.optimizer, None)):
        close = difflib.get_close_matches(settings.optimizer, dir(optax), n=5, cutoff=0.5)
        raise SettingsError(
            f'optimizer names {settings.optimizer!r}, which optax does not have; '
            f'near names: {close}'
        )
