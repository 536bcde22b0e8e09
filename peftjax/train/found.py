"""Arguments of methods that are found from the model and the data before training.

`config.found.<method>.<argument>` names a function here, whose settings are `config.<name>`. A new
one is one function and one line in FOUND.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp

import peftjax
from peftjax.train.config import Config
from peftjax.train.data import batches as data
from peftjax.train.tasks.registry import Task

Found = Mapping[str, Mapping[str, Any]]


def eva(config: Config, model: peftjax.Model, task: Task) -> dict[str, jax.Array]:
    """`A` of LoRA for each target, from the inputs of some training batches."""
    settings = dict(config.eva)
    batches = map(task.inputs, islice(_batches(config, task), settings.pop('batches')))

    def counted(inputs: Mapping[str, jax.Array]) -> jax.Array:
        mask = inputs['attention_mask' if 'attention_mask' in inputs else 'segment_ids']
        return mask.astype(jnp.int32) > 0

    return peftjax.train.eva(model, batches, counted=counted, **settings).a


def fisher(config: Config, model: peftjax.Model, task: Task) -> dict[str, Any]:
    """Places of the FISH mask: a share of the model's entries, by some training examples."""
    settings = config.fisher

    def log_likelihood(params: Any, example: Mapping[str, jax.Array]) -> jax.Array:
        batch: Any = {name: value[None] for name, value in example.items()}
        return -task.sums(model.apply(params, **task.inputs(batch)), batch)['loss']

    batches = islice(_batches(config, task), max(1, settings.examples // config.data.batch_size))
    scores = peftjax.train.fisher(log_likelihood, model.params, batches)
    count = round(settings.share * sum(leaf.size for leaf in jax.tree.leaves(scores)))
    return peftjax.largest_entries(scores, count, settings.targets)


def principal_subspaces(config: Config, model: peftjax.Model, task: Task) -> dict[str, Any]:
    """The largest singular vectors of each target, from the model alone."""
    del task
    return peftjax.principal_subspaces(model, **config.principal_subspaces)


FOUND: Mapping[str, Callable[[Config, peftjax.Model, Task], Any]] = {
    'eva': eva,
    'fisher': fisher,
    'principal_subspaces': principal_subspaces,
}


def find(config: Config, model: peftjax.Model, task: Task) -> Found:
    """All arguments that `config.found` asks for, by method and argument.

    Raises:
        ValueError: a name is unknown.
    """
    values: dict[str, dict[str, Any]] = {}
    for method, arguments in config.found.items():
        for argument, name in arguments.items():
            if name not in FOUND:
                raise ValueError(
                    f'config.found.{method}.{argument} names {name!r}; known: {", ".join(FOUND)}'
                )
            values.setdefault(method, {})[argument] = FOUND[name](config, model, task)
    return values


def _batches(config: Config, task: Task) -> Any:
    """Training batches without an end, in an order that the seed decides."""
    rows = task.splits['train']
    batches = data.train_batches(
        rows,
        batch_size=config.data.batch_size,
        lengths=config.data.lengths,
        seed=config.seed,
        steps=max(1, len(rows) // config.data.batch_size),
    )
    return (part.rows for part in batches)
