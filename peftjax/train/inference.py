"""Scores and predictions of a trained model on a task's splits, or on records of your own."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import peftjax
from peftjax.train.data.batches import collate
from peftjax.train.placement import Placement
from peftjax.train.run import Run
from peftjax.train.scoring import score
from peftjax.train.settings import SettingsError
from peftjax.train.task import Beside, Task, Trained


def evaluate(
    model: peftjax.Model,
    transform: peftjax.PeftTransform,
    adapter: Any,
    frozen: peftjax.Frozen,
    task: Task,
    split: str = 'test',
) -> dict[str, float]:
    """The scores of a trained model on a split of a task, by name.

    Raises:
        SettingsError: the task has no rows in that split; the message names those with rows.

    Example:
        >>> rows = [{'x': np.ones(4, np.float32), 'y': np.int32(0), 'weights': np.float32(1)}]
        >>> def totals(forward, batch):
        ...     loss = (forward({'x': batch['x']})[:, 0] * batch['weights']).sum()
        ...     return {'loss': loss, 'weights': batch['weights'].sum()}
        >>> task = peftjax.train.Task(splits={'test': rows}, totals=totals, eval_batch_size=2)
        >>> mlp = peftjax.testing.tiny_mlp()
        >>> tx = peftjax.lora(rank=2, targets=r'hidden')
        >>> list(evaluate(mlp, tx, *tx.init(jax.random.key(0), mlp), task))
        ['loss']
    """
    if not task.splits.get(split):
        found = ', '.join(name for name, rows in task.splits.items() if rows)
        raise SettingsError(f'the task has no split {split!r}; it has {found}')
    run, beside = _run(model, transform, frozen, task)
    scored = jax.jit(run.scored)

    def one(batch: Any, size: int) -> Any:
        del size
        totals, kept = scored(adapter, beside, batch)
        return [([0], (totals, {name: values[None] for name, values in kept.items()}))]

    scores = score(task, split, Placement(None), 1, one).scores(0)
    trained = Trained(run.model, transform, adapter, frozen, task)
    for evaluator in task.evaluators:
        scores |= evaluator(trained, split)
    return scores


def predict(
    model: peftjax.Model,
    transform: peftjax.PeftTransform,
    adapter: Any,
    frozen: peftjax.Frozen,
    task: Task,
    records: Iterable[Mapping[str, Any]],
) -> list[Mapping[str, Any]]:
    """The answers of a trained model to records, in their order.

    Args:
        model, transform, adapter, frozen: of the trained model.
        task: says how a record becomes a row, and how an output becomes an answer.
        records: `{column: value}`, as in the task's data, without the answer.

    Raises:
        SettingsError: the task makes no predictions.
        ValueError: a record lacks a column.
    """
    run, beside = _run(model, transform, frozen, task)
    if task.predict is not None:
        return task.predict(Trained(run.model, transform, adapter, frozen, task), list(records))
    if task.row is None or task.answer is None or task.outputs is None:
        raise SettingsError('this task makes no predictions: it has no row, answer or outputs')
    rows = [task.row(record) for record in records]
    outputs = jax.jit(run.outputs)
    answers: dict[int, Mapping[str, Any]] = {}
    order = np.argsort([len(row.get('input_ids', ())) for row in rows], kind='stable').tolist()
    size = task.eval_batch_size
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        filled: Sequence[int] = [*chosen, *[chosen[-1]] * (size - len(chosen))]
        found = jax.device_get(
            outputs(adapter, beside, collate([rows[i] for i in filled], task.lengths))
        )
        for place, i in enumerate(chosen):
            answers[i] = task.answer({name: values[place] for name, values in found.items()})
    return [answers[i] for i in range(len(rows))]


def _run(
    model: peftjax.Model, transform: peftjax.PeftTransform, frozen: peftjax.Frozen, task: Task
) -> tuple[Run, Beside]:
    """A run of no steps, for its functions, and everything beside the adapter."""
    run = Run(
        model=model,
        transform=transform,
        task=task,
        make_optimizer=_no_optimizer,
        steps=0,
        steps_per_epoch=0,
        log_every=1,
        eval_every=1,
        save_every=1,
    )
    reference = model.params if task.needs_reference else None
    return run.without_values(), Beside(frozen, reference, task.constants)


def _no_optimizer(numbers: Any) -> Any:
    raise ValueError('a run of no steps has no optimiser')
