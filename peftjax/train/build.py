"""From a config to the parts of a run: model, method, optimiser, data, step, evaluation."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import peftjax
from peftjax.train import cadence
from peftjax.train.config import Config
from peftjax.train.data.batches import Batch
from peftjax.train.found import Found, find
from peftjax.train.optimizers import build_optimizer
from peftjax.train.placement import Placement
from peftjax.train.step import TrainState, init_state
from peftjax.train.tasks.registry import TASKS, Task


class Run(NamedTuple):
    """The parts of a run, built from its config.

    Attributes:
        model: the base model.
        transform: the method, which makes the adapter.
        optimizer: for the adapter.
        task: the data and what is counted.
        loss: `loss(adapter, frozen, batch, key, penalties)`, for the training step; the weights of
            the penalties are those of the config unless given.
        sums: `sums(adapter, frozen, batch)`, totals for evaluation.
        steps, steps_per_epoch: how long the run is.
        placement: where its arrays lie.
    """

    model: peftjax.Model
    transform: peftjax.PeftTransform
    optimizer: optax.GradientTransformation
    task: Task
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    sums: Callable[[Any, Any, Batch], dict[str, jax.Array]]
    steps: int
    steps_per_epoch: int
    placement: Placement


def build(config: Config, model: peftjax.Model | None = None, task: Task | None = None) -> Run:
    """Builds the parts of the run that a config describes.

    Args:
        config: see configs/base.py.
        model, task: of `build_model` and `build_task`, where they are there already.

    Raises:
        ValueError: a name in the config is unknown, with the names that are known.
    """
    placement = Placement(config)
    model = build_model(config, placement) if model is None else model
    task = build_task(config, model) if task is None else task
    transform = build_transform(config, find(config, model, task))
    penalty = build_penalty(config)
    steps_per_epoch = len(task.splits['train']) // config.data.batch_size
    steps = cadence.steps(
        config.duration, steps_per_epoch=steps_per_epoch, batch_size=config.data.batch_size
    )
    predict = peftjax.adapt(without_values(model), transform)

    def loss(
        adapter: Any,
        frozen: peftjax.Frozen,
        batch: Batch,
        key: jax.Array,
        penalties: Mapping[str, Any] = config.penalties,
    ) -> tuple[jax.Array, dict]:
        result = predict(adapter, frozen, **task.inputs(batch), adapter_key=key)
        sums = task.sums(result, batch)
        # A part of a batch in which nothing counts has a loss of 0 and no weight.
        weight = jnp.maximum(sums['weights'], 1.0)
        value = sums['loss'] / weight + penalty(adapter, penalties)
        return value, {'accuracy': sums['correct'] / weight, 'weight': sums['weights']}

    def sums(adapter: Any, frozen: peftjax.Frozen, batch: Batch) -> dict[str, jax.Array]:
        return task.sums(predict(adapter, frozen, **task.inputs(batch)), batch)

    optimizer = build_optimizer(config, steps)
    return Run(model, transform, optimizer, task, loss, sums, steps, steps_per_epoch, placement)


def start(config: Config, run: Run) -> tuple[TrainState, peftjax.Frozen]:
    """The state that a run begins with, and what stays frozen beside its adapter.

    Both follow from the model and `config.seed` alone. A run that goes on from a checkpoint calls
    this too: `frozen` belongs to the fresh adapter, and no checkpoint holds it.
    """
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    adapter, frozen = run.transform.init(init_key, run.model)
    return init_state(adapter, run.optimizer, step_key), frozen


def without_values(model: peftjax.Model) -> peftjax.Model:
    """The model with the shapes of its parameters alone, so that it keeps no array in memory."""
    return model.replace(
        params=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    )


def build_model(
    config: Config, placement: Placement, like: peftjax.Model | None = None
) -> peftjax.Model:
    """Loads the base to its place; a fresh head's values come from the run's seed.

    like: the model of another seed, whose leaves are taken but for such a head.
    """
    key = jax.random.key(config.seed)
    return peftjax.load(**config.model, key=key, mesh=placement.mesh, like=like)


def build_task(config: Config, model: peftjax.Model) -> Task:
    """Reads the data of a config.

    Raises:
        ValueError: their name is unknown, with the names that are known.
    """
    if config.data.name not in TASKS:
        raise ValueError(f'unknown data {config.data.name!r}; known: {", ".join(TASKS)}')
    return TASKS[config.data.name](config.data, model.tokenizer)


def build_transform(config: Config, found: Found | None = None) -> peftjax.PeftTransform:
    """Chains the methods named in `config.peft`, in that order.

    Each name is a function of peftjax and has its arguments under `config.<name>`, so a method that
    is added to peftjax can be used here as it is.

    Args:
        config: see configs/base.py.
        found: further arguments by method, which replace the config's.

    Raises:
        ValueError: a name is not a function of peftjax, or its settings are missing.
    """
    methods = []
    for name in config.peft:
        if name not in peftjax.__all__:
            raise ValueError(
                f'config.peft names {name!r}, which peftjax does not have; '
                f'it has {", ".join(peftjax.__all__)}'
            )
        if name not in config:
            raise ValueError(f'config.peft names {name!r}, but there is no config.{name}')
        arguments = {**config[name], **(found or {}).get(name, {})}
        methods.append(getattr(peftjax, name)(**arguments))
    return peftjax.chain(*methods)


def build_penalty(config: Config) -> Callable[[Any, Mapping[str, Any]], jax.Array | float]:
    """`penalty(adapter, weights)`: the sum of the penalties on the adapter, each times its weight.

    Each name in `config.penalties` is a function of peftjax from the adapter to a scalar.

    Raises:
        ValueError: a name is not a function of peftjax.
    """
    for name in config.penalties:
        if name not in peftjax.__all__:
            raise ValueError(f'config.penalties names {name!r}, which peftjax does not have')
    terms = {name: getattr(peftjax, name) for name in config.penalties}
    return lambda adapter, weights: sum(
        (weights[name] * term(adapter) for name, term in terms.items()), start=0.0
    )


def evaluate(
    sums: Callable[[Batch], dict[str, jax.Array]], batches: Iterable[Batch]
) -> dict[str, float]:
    """Mean loss and accuracy over all batches, each example (or answer token) counted once."""
    totals = {'loss': 0.0, 'correct': 0.0, 'weights': 0.0}
    for batch in batches:
        for name, value in sums(batch).items():
            totals[name] += float(value)
    return {
        'loss': totals['loss'] / totals['weights'],
        'accuracy': totals['correct'] / totals['weights'],
    }
