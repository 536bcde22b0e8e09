"""Arguments of methods that are found from the model and the data before training.

`settings.found.<method>.<argument>` names a function of this module; the section of that name holds
its arguments. To add one, write a function, and a line in FOUND.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

import peftjax
from peftjax.train.data import batches as data
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.task import Beside, Forward, Task

Found = Mapping[str, Mapping[str, Any]]


def eva(settings: Settings, model: peftjax.Model, task: Task) -> dict[str, jax.Array]:
    """`A` of LoRA for each target, from the inputs of some training batches."""
    arguments = dict(settings.section('eva'))
    chosen = islice(_batches(settings, task), arguments.pop('batches'))
    batches = (inputs_of(task, batch) for batch in chosen)

    def counted(inputs: Mapping[str, jax.Array]) -> jax.Array:
        mask = inputs['attention_mask' if 'attention_mask' in inputs else 'segment_ids']
        return mask.astype(jnp.int32) > 0

    return peftjax.train.eva(model, batches, counted=counted, **arguments).a


def fisher(settings: Settings, model: peftjax.Model, task: Task) -> dict[str, Any]:
    """Entries of the FISH mask: a share of the model's entries, chosen by some examples."""
    arguments = settings.section('fisher')

    def apply(params: Any, frozen: None, *, adapter_key: None, **inputs: Any) -> Any:
        del frozen, adapter_key
        return model.apply(params, **inputs)

    def log_likelihood(params: Any, example: Mapping[str, jax.Array]) -> jax.Array:
        batch: Any = {name: value[None] for name, value in example.items()}
        forward = Forward(apply, model.apply, params, Beside(None), None)
        return -task.totals(forward, batch)['loss']

    batches = islice(_batches(settings, task), max(1, arguments['examples'] // task.batch_size))
    scores = peftjax.train.fisher(log_likelihood, model.params, batches)
    count = round(arguments['share'] * sum(leaf.size for leaf in jax.tree.leaves(scores)))
    return peftjax.largest_entries(scores, count, arguments['targets'])


def principal_subspaces(settings: Settings, model: peftjax.Model, task: Task) -> dict[str, Any]:
    """The largest singular vectors of each target, from the model alone."""
    del task
    return peftjax.principal_subspaces(model, **settings.section('principal_subspaces'))


FOUND: Mapping[str, Callable[[Settings, peftjax.Model, Task], Any]] = {
    'eva': eva,
    'fisher': fisher,
    'principal_subspaces': principal_subspaces,
}


def find(settings: Settings, model: peftjax.Model, task: Task) -> Found:
    """All arguments that `settings.found` asks for, by method and argument.

    Raises:
        SettingsError: a name is unknown.
    """
    values: dict[str, dict[str, Any]] = {}
    for method, arguments in settings.found.items():
        for argument, name in arguments.items():
            if name not in FOUND:
                raise SettingsError(
                    f'found.{method}.{argument} names {name!r}; known: {", ".join(FOUND)}'
                )
            values.setdefault(method, {})[argument] = FOUND[name](settings, model, task)
    return values


class _Inputs(Exception):
    """Carries the inputs of a model's call out of a loss function."""


def inputs_of(task: Task, batch: Any) -> Mapping[str, Any]:
    """The inputs of the first call of the model in a task's loss, for a batch."""

    def stop(adapter: None, frozen: None, *, adapter_key: None, **inputs: Any) -> NoReturn:
        del adapter, frozen, adapter_key
        raise _Inputs(inputs)

    try:
        task.totals(Forward(stop, stop, None, Beside(None), None), batch)
    except _Inputs as found:
        return found.args[0]
    raise ValueError('the loss of the task does not run the model')


def _batches(settings: Settings, task: Task) -> Any:
    """The training batches of one epoch, in an order that the seed decides."""
    rows = task.splits['train']
    batches = data.train_batches(
        rows,
        batch_size=task.batch_size,
        lengths=task.lengths,
        seed=settings.seed,
        steps=max(1, len(rows) // task.batch_size),
    )
    return (part.rows for part in batches)
