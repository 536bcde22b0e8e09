"""From a config to the optimiser: a function of optax by name, and what is put around it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import peftjax
from peftjax.train.config import Config

_FALLS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'linear': lambda share: 1.0 - share,
    'cosine': lambda share: 0.5 * (1.0 + jnp.cos(jnp.pi * share)),
    'constant': jnp.ones_like,
}

Numbers = Mapping[str, Any]
"""What an optimiser computes with, by name: floats, or arrays of several runs in one program."""


def numbers_of(config: Config, steps: int) -> Numbers:
    """The real numbers of a config that its optimiser and penalties compute with.

    Args:
        config: see configs/base.py.
        steps: of the whole run.
    """
    warmup = config.warmup * steps if config.warmup < 1 else config.warmup
    rise = min(max(1, round(warmup)), steps)
    sections = (config.optimizer, *config.around)
    return {
        'lr': float(config.lr),
        'rise': float(rise),
        'left': float(max(1, steps - rise)),
        'rates': dict(config.rates),
        'penalties': dict(config.penalties),
        **({'clip_norm': float(config.clip_norm)} if config.clip_norm else {}),
        **{name: _reals(config[name]) for name in sections if name in config},
    }


def _reals(section: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in section.items() if isinstance(value, float)}


def build_optimizer(
    config: Config, steps: int, numbers: Numbers | None = None
) -> optax.GradientTransformation:
    """Clips, then the optimiser, then what is around it.

    `config.optimizer` names a function of optax, with its arguments but the rate under
    `config.<name>`. `config.rates` multiplies `config.lr` for methods of `config.peft`.
    Each name in `config.around` is a function of peftjax.train that takes an optimiser and
    returns one, with its arguments under `config.<name>`; one that asks for `total_steps` is given
    those of the run.

    Args:
        config: see configs/base.py.
        steps: of the whole run.
        numbers: in the place of the config's own; they may be traced.

    Raises:
        ValueError: a name is unknown, or its settings are missing.
    """
    own = numbers_of(config, steps) if numbers is None else numbers
    make = _function(config, optax, 'optimizer', config.optimizer)
    arguments = {**config[config.optimizer], **own[config.optimizer]}
    parts = [make(schedule(config, steps, own), **arguments)]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(own['clip_norm']))
    if config.rates:
        parts.append(_rates(config, own['rates']))
    optimizer = optax.chain(*parts)
    for name in config.around:
        wrap = _function(config, peftjax.train, 'around', name)
        settings = {**config[name], **own[name]}
        if 'total_steps' in inspect.signature(wrap).parameters:
            settings['total_steps'] = steps
        optimizer = wrap(optimizer, **settings)
    return optimizer


def schedule(config: Config, steps: int, numbers: Numbers | None = None) -> optax.Schedule:
    """Rises to `config.lr` over the warm-up, then falls to 0 as `config.schedule` says.

    `config.warmup` below 1 is a share of the run, otherwise a number of steps. The rate is
    `lr` times a shape whose peak is 1, so that several rates share one program.

    Raises:
        ValueError: the schedule is unknown.
    """
    if config.schedule not in _FALLS:
        raise ValueError(
            f'config.schedule is {config.schedule!r}; write one of {", ".join(_FALLS)}'
        )
    fall = _FALLS[config.schedule]
    own = numbers_of(config, steps) if numbers is None else numbers
    lr, rise, left = (own[name] for name in ('lr', 'rise', 'left'))

    def rate(step: Any) -> jax.Array:
        at = jnp.asarray(step, jnp.float32)
        rising = 1 / rise + (1 - 1 / rise) * at / rise
        return lr * jnp.where(at < rise, rising, fall(jnp.clip((at - rise) / left, 0.0, 1.0)))

    return rate


def _rates(config: Config, rates: Mapping[str, Any]) -> optax.GradientTransformation:
    """Scales the update of each method of the chain: an update is linear in the rate."""
    unknown = sorted(set(config.rates) - set(config.peft))
    if unknown:
        raise ValueError(f'config.rates names {unknown}, config.peft only {list(config.peft)}')
    factors = [rates.get(name, 1.0) for name in config.peft]

    def scaled(updates: Any, params: Any = None) -> Any:
        del params
        return tuple(
            jax.tree.map(lambda leaf, factor=factor: (factor * leaf).astype(leaf.dtype), part)
            for factor, part in zip(factors, updates, strict=True)
        )

    return optax.stateless(scaled)


def _function(config: Config, module: Any, field: str, name: str) -> Any:
    if not callable(getattr(module, name, None)):
        raise ValueError(f'config.{field} names {name!r}, which {module.__name__} does not have')
    if name not in config:
        raise ValueError(f'config.{field} names {name!r}, but there is no config.{name}')
    return getattr(module, name)
