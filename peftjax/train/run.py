"""One training run as a value: its parts, its step, and its initial state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import peftjax
from peftjax.train.data.batches import collate
from peftjax.train.optimizers import Numbers
from peftjax.train.settings import SettingsError
from peftjax.train.step import TrainState, init_state, make_train_step
from peftjax.train.task import Batch, Beside, Evaluator, Forward, Task, Totals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run.

    Attributes:
        model: the base.
        transform: the method, which makes the adapter.
        task: the data, the loss and the scores.
        make_optimizer: a function from the numbers to the optimiser.
        numbers: see `Numbers`.
        penalty: `penalty(adapter, weights)`, added to the loss; the weights are
            `numbers['penalties']`.
        steps, steps_per_epoch: number of steps of the run, and of one epoch.
        log_every, eval_every, save_every: steps between two log lines, evaluations, checkpoints.
        accumulate: parts of a batch, one after another, that make one step.
        best: the score that chooses the best checkpoint, with a minus sign where less is better.
        evaluators: scores beyond those of the task.
        seed: decides the adapter's start and the order of the examples.
        warm: `warm(adapter)` replaces the adapter that the seed draws by one to start from.
        description: all settings, as JSON holds them. A work folder goes on only with the same.
    """

    model: peftjax.Model
    transform: peftjax.PeftTransform
    task: Task
    make_optimizer: Callable[[Numbers], optax.GradientTransformation]
    numbers: Numbers = dataclasses.field(default_factory=dict)
    penalty: Callable[[Any, Mapping[str, Any]], Any] | None = None
    steps: int
    steps_per_epoch: int
    log_every: int
    eval_every: int
    save_every: int
    accumulate: int = 1
    best: str = '-loss'
    evaluators: tuple[Evaluator, ...] = ()
    seed: int = 0
    warm: Any = None
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def start(self) -> tuple[TrainState, Beside]:
        """The initial state of the run, and everything that it does not train.

        Both follow from the model, the seed and `warm`. A run that goes on from a checkpoint calls
        this too: `frozen` belongs to the fresh adapter, and no checkpoint holds it.
        """
        init_key, step_key = jax.random.split(jax.random.key(self.seed))
        adapter, frozen = self.transform.init(init_key, self.model)
        adapter = adapter if self.warm is None else self.warm(adapter)
        reference = self.model.params if self.task.needs_reference else None
        state = init_state(adapter, self.make_optimizer(self.numbers), step_key)
        # Moved to the device once, and not at each step.
        constants = jax.tree.map(jnp.asarray, self.task.constants)
        return state, Beside(frozen, reference, constants)

    def without_values(self) -> 'Run':
        """The run with the shapes of the model's parameters, so that it keeps none in memory."""
        return dataclasses.replace(self, model=without_values(self.model))

    def loss(
        self,
        adapter: Any,
        beside: Beside,
        batch: Batch,
        key: jax.Array,
        penalties: Mapping[str, Any] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean loss of a batch with the penalties, and means of the task's other totals."""
        totals = dict(self.task.totals(self.forward(adapter, beside, key), batch))
        weight = totals.pop('weights')
        # A part of a batch in which nothing counts has a loss of 0 and no weight.
        divisor = jnp.where(weight > 0, weight, 1.0)
        means = {name: total / divisor for name, total in totals.items()}
        value = means.pop('loss')
        if self.penalty is not None:
            weights = self.numbers['penalties'] if penalties is None else penalties
            value = value + self.penalty(adapter, weights)
        return value, {**means, 'weight': weight}

    def totals(self, adapter: Any, beside: Beside, batch: Batch) -> Totals:
        """The task's totals of a batch, in evaluation."""
        return self.task.totals(self.forward(adapter, beside, None), batch)

    def outputs(self, adapter: Any, beside: Beside, batch: Batch) -> Mapping[str, jax.Array]:
        """The task's outputs for each example, in evaluation; empty if it has none."""
        if self.task.outputs is None:
            return {}
        return self.task.outputs(self.forward(adapter, beside, None), batch)

    def scored(self, adapter: Any, beside: Beside, batch: Batch) -> tuple[Totals, Mapping]:
        """Totals and outputs of a batch, in one program; outputs only if a metric reads them."""
        kept = self.outputs(adapter, beside, batch) if self.task.metrics else {}
        return self.totals(adapter, beside, batch), kept

    def step(
        self, numbers: Numbers, state: TrainState, beside: Beside, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One training step: a pure function, also of the run's numbers."""
        loss = functools.partial(self.loss, penalties=numbers.get('penalties'))
        one = make_train_step(loss, self.make_optimizer(numbers), accumulate=self.accumulate)
        return one(state, beside, batch)

    def check_best(self, adapter: Any, beside: Beside) -> None:
        """Checks, before anything is trained, that evaluations give the score that chooses.

        Scores of evaluators are known only once they are called, and are not checked.

        Raises:
            SettingsError: there is no such score; the message lists the scores.
        """
        if self.evaluators or not self.task.splits.get('validation'):
            return
        batch = collate([self.task.splits['validation'][0]], self.task.lengths)
        shapes = jax.eval_shape(self.totals, adapter, beside, batch)
        names = [name for name in shapes if name != 'weights']
        names += [metric.name for metric in self.task.metrics]
        if self.best.removeprefix('-') not in names:
            raise SettingsError(f'best is {self.best!r}; the scores are {", ".join(names)}')

    def forward(self, adapter: Any, beside: Beside, key: jax.Array | None) -> Forward:
        """The model as the task's functions run it."""
        return Forward(self._predict, self.model.apply, adapter, beside, key)

    @functools.cached_property
    def _predict(self) -> Callable[..., Any]:
        return peftjax.adapt(without_values(self.model), self.transform)


def example_batch(task: Task) -> Any:
    """A training batch of the greatest length, as shapes."""
    rows = [task.splits['train'][0]] * task.batch_size
    batch = collate(rows, (max(task.lengths, default=0),))  # images have no length
    return {name: jax.ShapeDtypeStruct(each.shape, each.dtype) for name, each in batch.items()}


def without_values(model: peftjax.Model) -> peftjax.Model:
    """The model with the shapes of its parameters alone, so that it keeps no array in memory."""
    return model.replace(
        params=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    )
