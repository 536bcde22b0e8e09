"""From a config to the optimiser: a function of optax by name, and what is put around it."""

import inspect
from typing import Any

import jax
import optax

from experiments.config import Config
from peftjax import training

_SHAPES = ('linear', 'cosine', 'constant')


def build_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Clips, then the optimiser, then what is around it.

    `config.optimizer` names a function of optax, with its arguments but the rate under
    `config.<name>`. `config.rates` multiplies `config.lr` for methods of `config.peft`.
    Each name in `config.around` is a function of peftjax.training that takes an optimiser and
    returns one, with its arguments under `config.<name>`; one that asks for `total_steps` is given
    those of the run.

    Args:
        config: see configs/base.py.
        steps: of the whole run.

    Raises:
        ValueError: a name is unknown, or its settings are missing.
    """
    make = _function(config, optax, 'optimizer', config.optimizer)
    parts = [make(schedule(config, steps), **config[config.optimizer])]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.rates:
        parts.append(_rates(config))
    optimizer = optax.chain(*parts)
    for name in config.around:
        wrap = _function(config, training, 'around', name)
        settings = dict(config[name])
        if 'total_steps' in inspect.signature(wrap).parameters:
            settings['total_steps'] = steps
        optimizer = wrap(optimizer, **settings)
    return optimizer


def schedule(config: Config, steps: int) -> optax.Schedule:
    """Rises to `config.lr` over the warm-up, then falls to 0 as `config.schedule` says.

    `config.warmup` below 1 is a share of the run, otherwise a number of steps.

    Raises:
        ValueError: the schedule is unknown.
    """
    warmup = config.warmup * steps if config.warmup < 1 else config.warmup
    rise = min(max(1, round(warmup)), steps)
    left = max(1, steps - rise)
    falls = {
        'linear': optax.schedules.linear_schedule(config.lr, 0.0, left),
        'cosine': optax.schedules.cosine_decay_schedule(config.lr, left),
        'constant': optax.schedules.constant_schedule(config.lr),
    }
    if config.schedule not in falls:
        raise ValueError(
            f'config.schedule is {config.schedule!r}; write one of {", ".join(_SHAPES)}'
        )
    return optax.schedules.join_schedules(
        [
            optax.schedules.linear_schedule(config.lr / rise, config.lr, rise),
            falls[config.schedule],
        ],
        boundaries=[rise],
    )


def _rates(config: Config) -> optax.GradientTransformation:
    """Scales the update of each method of the chain: an update is linear in the rate."""
    unknown = sorted(set(config.rates) - set(config.peft))
    if unknown:
        raise ValueError(f'config.rates names {unknown}, config.peft only {list(config.peft)}')
    factors = [config.rates.get(name, 1.0) for name in config.peft]

    def scaled(updates: Any, params: Any = None) -> Any:
        del params
        return tuple(
            jax.tree.map(lambda leaf, factor=factor: factor * leaf, part)
            for factor, part in zip(factors, updates, strict=True)
        )

    return optax.stateless(scaled)


def _function(config: Config, module: Any, field: str, name: str) -> Any:
    if not callable(getattr(module, name, None)):
        raise ValueError(f'config.{field} names {name!r}, which {module.__name__} does not have')
    if name not in config:
        raise ValueError(f'config.{field} names {name!r}, but there is no config.{name}')
    return getattr(module, name)
