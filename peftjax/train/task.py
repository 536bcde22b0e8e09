"""The task that a run learns: its examples, its loss, and its scores.

Training knows a task only by the values in a `Task`, so your own task is used like ours: write a
function `(settings, model) -> Task`, and name it `package.module:function`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

import peftjax
from peftjax.train.data.packing import Row

Batch = Mapping[str, Any]
"""Arrays [B, ...] by name: rows of a task, stacked."""

Totals = Mapping[str, jax.Array]
"""Sums over a batch, scalars float32: 'loss', 'weights', and any others.

All others are divided by 'weights'. They are sums and not means, so that batches of any size add up
exactly.
"""

Outputs = Mapping[str, list[np.ndarray]]
"""Arrays by name from which metrics are computed: one for each example of a split."""


class Forward:
    """The model as a loss function runs it: `forward(inputs)` with the adapter.

    Attributes:
        adapter: the arrays that train.
        frozen: the arrays of the model and the method that do not train.
        constants: arrays of the task that are no part of the model, such as a teacher's weights.
        key: the PRNG key of the step; None in an evaluation, where no method draws noise.
    """

    def __init__(
        self,
        predict: Callable[..., Any],
        base: Callable[..., Any],
        adapter: Any,
        beside: 'Beside',
        key: jax.Array | None,
    ):
        self._predict, self._base, self._reference = predict, base, beside.reference
        self.adapter, self.frozen, self.constants = adapter, beside.frozen, beside.constants
        self.key = key
        self._calls = 0

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        """The model's result with the adapter. Each call of a step draws its own noise."""
        key = self.key
        if key is not None and self._calls:
            key = jax.random.fold_in(key, self._calls)
        self._calls += 1
        return self._predict(self.adapter, self.frozen, **inputs, adapter_key=key)

    def reference(self, inputs: Mapping[str, Any]) -> Any:
        """The result of the base model, without the adapter and without a gradient.

        Raises:
            ValueError: the task does not set `needs_reference`.
        """
        if self._reference is None:
            raise ValueError('the loss runs the reference: set needs_reference=True in the Task')
        return jax.lax.stop_gradient(self._base(self._reference, **inputs))


class Beside(NamedTuple):
    """Everything that a step reads and does not train.

    Attributes:
        frozen: the frozen arrays of the method.
        reference: the base model's parameters, for tasks that compare with it. Leaves that the
            method left in `frozen.params` are the same arrays there and here.
        constants: see `Task`.
    """

    frozen: Any
    reference: Any = None
    constants: Any = None


class Metric(NamedTuple):
    """A score that is computed from the outputs of a whole split, on the host.

    Attributes:
        name: of the score.
        compute: from the outputs of all examples to a number.
    """

    name: str
    compute: Callable[[Outputs], float]


class Trained(NamedTuple):
    """The argument of an evaluator: the model with the adapter at this step.

    Attributes:
        model: shapes in place of values; the values are in `frozen`.
        transform, adapter, frozen: of the method.
        task: of the run.
    """

    model: peftjax.Model
    transform: peftjax.PeftTransform
    adapter: Any
    frozen: peftjax.Frozen
    task: 'Task'


class Evaluator(Protocol):
    """Computes scores of the model on a split, by name, beside those of the task."""

    def __call__(self, trained: Trained, split: str, /) -> Mapping[str, float]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A data set and how to learn it.

    Attributes:
        splits: the rows of 'train', and of 'validation' and 'test' if there are any.
        totals: `totals(forward, batch)`, the sums of a batch. The mean loss is differentiated; the
            other totals are logged as means under their names.
        outputs: `outputs(forward, batch)`, arrays [B, ...] that `metrics` are computed from.
        metrics: scores of a whole split.
        evaluators: further scores, such as those of generated text.
        best: the score of the validation split that chooses the best checkpoint; with a minus sign
            if less is better.
        batch_size, eval_batch_size: examples in a step, and in a batch of an evaluation.
        lengths: a batch of tokens is padded to the least of these that fits.
        needs_reference: whether the loss calls `forward.reference`.
        constants: arrays that the loss reads, an argument of the compiled step.
        row: from a record, `{column: value}`, to a row without its answer, for predictions.
        answer: from an example's outputs to plain values for people, such as a class's name.
        predict: `predict(trained, records)`, the answers to records that `row` and `answer` cannot
            give, such as texts that the model writes.
        classes: names of the classes, in order.
        notes: lines for the log, such as how many answers were cut.
    """

    splits: Mapping[str, Sequence[Row]]
    totals: Callable[[Forward, Batch], Totals]
    outputs: Callable[[Forward, Batch], Mapping[str, jax.Array]] | None = None
    metrics: tuple[Metric, ...] = ()
    evaluators: tuple[Evaluator, ...] = ()
    best: str = '-loss'
    batch_size: int = 32
    eval_batch_size: int = 64
    lengths: tuple[int, ...] = ()
    needs_reference: bool = False
    constants: Any = None
    row: Callable[[Mapping[str, Any]], Row] | None = None
    answer: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]] | None = None
    predict: Callable[[Trained, Sequence[Mapping[str, Any]]], list[Mapping[str, Any]]] | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
