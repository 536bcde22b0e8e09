"""Builds the optimiser from the settings: a function of optax by name, and wrappers around it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import peftjax
from peftjax.train.settings import Settings, SettingsError

Numbers = Mapping[str, Any]
"""Numbers that the optimiser and the penalties use, by name: floats, or arrays for several runs."""

_FALLS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'linear': lambda share: 1.0 - share,
    'cosine': lambda share: 0.5 * (1.0 + jnp.cos(jnp.pi * share)),
    'constant': jnp.ones_like,
}


def numbers_of(settings: Settings, steps: int) -> Numbers:
    """The real numbers of the settings that the optimiser and penalties compute with.

    Args:
        settings: of the run.
        steps: of the whole run.
    """
    warmup = settings.warmup * steps if settings.warmup < 1 else settings.warmup
    rise = min(max(1, round(warmup)), steps)
    functions = (settings.optimizer, *settings.around)
    return {
        'lr': float(settings.lr),
        'rise': float(rise),
        'left': float(max(1, steps - rise)),
        'rates': dict(settings.rates),
        'penalties': dict(settings.penalties),
        **({'clip_norm': float(settings.clip_norm)} if settings.clip_norm else {}),
        **{name: _reals(settings.section(name)) for name in functions},
    }


def _reals(section: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in section.items() if isinstance(value, float)}


def build_optimizer(
    settings: Settings, steps: int, numbers: Numbers | None = None
) -> optax.GradientTransformation:
    """Chains clipping and the optimiser, and puts the wrappers around them.

    `settings.optimizer` names a function of optax; the section of that name holds its arguments
    except the learning rate. `settings.rates` multiplies `settings.lr` for single methods. Each
    name in `settings.around` is a function of peftjax.train that takes an optimiser and returns
    one, with its arguments in the section of its name. Its argument `total_steps`, if it has one,
    is the number of steps of the run.

    Args:
        settings: of the run.
        steps: of the whole run.
        numbers: replace the numbers of the settings; they may be traced.

    Raises:
        SettingsError: a name is unknown.
    """
    own = numbers_of(settings, steps) if numbers is None else numbers
    make = _function(settings, optax, 'optimizer', settings.optimizer)
    arguments = {**settings.section(settings.optimizer), **own[settings.optimizer]}
    parts = [make(schedule(settings, steps, own), **arguments)]
    if settings.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(own['clip_norm']))
    if settings.rates:
        parts.append(_rates(settings, own['rates']))
    optimizer = optax.chain(*parts)
    for name in settings.around:
        wrap = _function(settings, peftjax.train, 'around', name)
        arguments = {**settings.section(name), **own[name]}
        if 'total_steps' in inspect.signature(wrap).parameters:
            arguments['total_steps'] = steps
        optimizer = wrap(optimizer, **arguments)
    return optimizer


def schedule(settings: Settings, steps: int, numbers: Numbers | None = None) -> optax.Schedule:
    """Rises to `settings.lr` over the warm-up, then falls to 0 as `settings.schedule` says.

    `settings.warmup` below 1 is a share of the run, otherwise a number of steps. The rate is
    `lr` times a shape whose peak is 1, so that several rates share one program.

    Raises:
        SettingsError: the schedule is unknown.
    """
    if settings.schedule not in _FALLS:
        raise SettingsError(f'schedule is {settings.schedule!r}; write one of {", ".join(_FALLS)}')
    fall = _FALLS[settings.schedule]
    own = numbers_of(settings, steps) if numbers is None else numbers
    lr, rise, left = (own[name] for name in ('lr', 'rise', 'left'))

    def rate(step: Any) -> jax.Array:
        at = jnp.asarray(step, jnp.float32)
        rising = 1 / rise + (1 - 1 / rise) * at / rise
        return lr * jnp.where(at < rise, rising, fall(jnp.clip((at - rise) / left, 0.0, 1.0)))

    return rate


def _rates(settings: Settings, rates: Mapping[str, Any]) -> optax.GradientTransformation:
    """Scales the update of each method of the chain: an update is linear in the rate."""
    unknown = sorted(set(settings.rates) - set(settings.methods))
    if unknown:
        raise SettingsError(f'rates names {unknown}; the methods are {list(settings.methods)}')
    factors = [rates.get(name, 1.0) for name in settings.methods]

    def scaled(updates: Any, params: Any = None) -> Any:
        del params
        return tuple(
            jax.tree.map(lambda leaf, factor=factor: (factor * leaf).astype(leaf.dtype), part)
            for factor, part in zip(factors, updates, strict=True)
        )

    return optax.stateless(scaled)


def _function(settings: Settings, module: Any, field: str, name: str) -> Any:
    if not callable(getattr(module, name, None)):
        raise SettingsError(f'{field} names {name!r}, which {module.__name__} does not have')
    return getattr(module, name)
