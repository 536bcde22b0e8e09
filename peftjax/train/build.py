"""Builds the parts of a run from settings: model, task, method, optimiser."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

import peftjax
from peftjax.train import cadence
from peftjax.train.found import find
from peftjax.train.methods import build_transform
from peftjax.train.metrics.registry import better
from peftjax.train.optimizers import build_optimizer, numbers_of
from peftjax.train.placement import Placement
from peftjax.train.run import Run
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.task import Task
from peftjax.train.tasks.registry import find_task, head_of
from peftjax.train.warm_start import WarmStart


def build(settings: Settings, model: peftjax.Model | None = None, task: Task | None = None) -> Run:
    """Builds the parts of the run that the settings describe.

    Args:
        settings: of the run.
        model, task: results of `build_model` and `build_task`, if they exist already.

    Raises:
        SettingsError: a name in the settings is unknown; the message lists the known names.
    """
    model = build_model(settings, Placement.of(settings.mesh)) if model is None else model
    task = build_task(settings, model) if task is None else task
    transform = build_transform(settings, find(settings, model, task))
    steps_per_epoch = len(task.splits['train']) // task.batch_size
    in_steps = functools.partial(
        cadence.steps, steps_per_epoch=steps_per_epoch, batch_size=task.batch_size
    )
    steps = in_steps(settings.duration)
    return Run(
        model=model,
        transform=transform,
        task=task,
        make_optimizer=lambda numbers: build_optimizer(settings, steps, numbers),
        numbers=numbers_of(settings, steps),
        penalty=build_penalty(settings) if settings.penalties else None,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        log_every=in_steps(settings.log_every),
        eval_every=in_steps(settings.eval_every),
        save_every=in_steps(settings.save_every),
        accumulate=settings.accumulate,
        best=better(task.best if settings.best is None else settings.best),
        evaluators=task.evaluators,
        seed=settings.seed,
        warm=None if settings.init_from is None else WarmStart(settings.init_from, model),
        description=settings.to_dict(),
    )


def build_model(
    settings: Settings, placement: Placement, like: peftjax.Model | None = None
) -> peftjax.Model:
    """Loads the base onto its devices; the values of a new head come from the run's seed.

    like: the model of another seed, whose leaves are reused, except those of a new head.
    """
    model = settings.model
    if model.task is None:
        model = dataclasses.replace(model, task=head_of(settings.task))
    key = jax.random.key(settings.seed)
    return peftjax.load(**model.arguments(), key=key, mesh=placement.mesh, like=like)


def build_task(settings: Settings, model: peftjax.Model) -> Task:
    """Reads the data of a run.

    Raises:
        SettingsError: the task is unknown; the message lists the nearest known names.
    """
    return find_task(settings.task)(settings, model)


def build_penalty(settings: Settings) -> Callable[[Any, Mapping[str, Any]], jax.Array | float]:
    """`penalty(adapter, weights)`: the sum of the penalties on the adapter, each times its weight.

    Each name in `settings.penalties` is a function of peftjax from the adapter to a scalar.

    Raises:
        SettingsError: a name is not a function of peftjax.
    """
    for name in settings.penalties:
        if name not in peftjax.__all__:
            raise SettingsError(f'penalties names {name!r}, which peftjax does not have')
    terms = {name: getattr(peftjax, name) for name in settings.penalties}
    return lambda adapter, weights: sum(
        (weights[name] * term(adapter) for name, term in terms.items()), start=0.0
    )
