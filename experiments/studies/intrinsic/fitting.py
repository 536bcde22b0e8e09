"""Training runs in a subspace; all seeds and rates of one shape share a program."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import peftjax
from peftjax.train import init_state, make_train_step, share, stack

Arrays = Mapping[str, np.ndarray | jax.Array]
_EVALUATED = 500  # examples at a time


class Split(NamedTuple):
    """Examples of a split.

    Attributes:
        inputs: of the model, by name, each `[n, ...]`.
        labels: int `[n]`.
    """

    inputs: Arrays
    labels: np.ndarray | jax.Array


class Run(NamedTuple):
    """How a run trains.

    Attributes:
        steps, batch_size, rate: of the run.
        seed: of the order of the examples.
        decays: whether the rate warms up for a tenth of the steps and then falls linearly to 0;
            else it is constant.
    """

    steps: int
    batch_size: int
    rate: float
    seed: int
    decays: bool = False


class Fitter:
    """Trains runs, and compiles once for all runs of the same shape.

    Args:
        splits: 'train', 'validation' and 'test'.
        most: only this number of examples of each split, its first ones, are scored.
    """

    def __init__(self, splits: Mapping[str, Split], most: int):
        self._most = most
        self._splits = {
            name: Split(jax.tree.map(jnp.asarray, dict(split.inputs)), jnp.asarray(split.labels))
            for name, split in splits.items()
        }
        self._programs: dict[Hashable, tuple[Callable[..., Any], Callable[..., Any]]] = {}

    def fit(
        self, kind: Hashable, model: peftjax.Model, transform: peftjax.PeftTransform, run: Run
    ) -> dict[str, Any]:
        """Trains a run and scores it.

        Args:
            kind: equal for runs that share a program, because they differ only in numbers.
            model: with the initial weights of this run.
            transform: the method.
            run: how it trains.

        Returns:
            The accuracy on each split, and the number of trained values as `trained`.
        """
        kind = (kind, run.steps, run.batch_size, run.decays)
        if kind not in self._programs:
            self._programs[kind] = self._compiled(model, transform, run)
        train, scored = self._programs[kind]
        adapter, frozen = transform.init(jax.random.key(run.seed), model)
        order = orders(len(self._splits['train'].labels), run)
        adapter = train(adapter, frozen, order, run.rate)
        scores = {f'{name}/accuracy': self._score(scored, adapter, frozen, name) for name in SPLITS}
        trained = sum(leaf.size for leaf in jax.tree.leaves(adapter))
        return {**scores, 'trained': trained}

    def factor(
        self, models: Sequence[peftjax.Model], transforms: Sequence[peftjax.PeftTransform], run: Run
    ) -> float:
        """How many times as fast runs are in one program than one after another.

        Args:
            models, transforms: of runs that differ only in numbers.
            run: how each trains.
        """
        train, _ = self._compiled(models[0], transforms[0], run)
        starts = [
            transform.init(jax.random.key(0), model)
            for model, transform in zip(models, transforms, strict=True)
        ]
        frozen, axes = share([frozen for _, frozen in starts])
        adapters = stack([adapter for adapter, _ in starts])
        order = orders(len(self._splits['train'].labels), run)
        many = jax.jit(jax.vmap(train, in_axes=(0, axes, None, None)))

        def one_by_one() -> Any:
            return [train(adapter, mine, order, run.rate) for adapter, mine in starts]

        def together() -> Any:
            return many(adapters, frozen, order, run.rate)

        seconds = []
        for program in (one_by_one, together):
            jax.block_until_ready(program())
            began = time.perf_counter()
            jax.block_until_ready(program())
            seconds.append(time.perf_counter() - began)
        return seconds[0] / seconds[1]

    def _score(self, scored: Callable[..., Any], adapter: Any, frozen: Any, name: str) -> float:
        inputs, labels = self._splits[name]
        labels = labels[: self._most]
        right = 0
        for start in range(0, len(labels), _EVALUATED):
            part = slice(start, min(start + _EVALUATED, len(labels)))
            batch = {key: value[part] for key, value in inputs.items()}
            right += int((scored(adapter, frozen, batch) == labels[part]).sum())
        return right / len(labels)

    def _compiled(
        self, model: peftjax.Model, transform: peftjax.PeftTransform, run: Run
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        predict = peftjax.adapt(model, transform)
        inputs, labels = self._splits['train']

        def loss(adapter: Any, frozen: Any, places: jax.Array, key: jax.Array) -> Any:
            del key
            logits = predict(adapter, frozen, **{name: x[places] for name, x in inputs.items()})
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[places])
            return losses.mean(), {}

        def train(adapter: Any, frozen: Any, order: jax.Array, rate: jax.Array) -> Any:
            optimizer = optax.adam(
                lambda step: rate * falling(step, run.steps) if run.decays else rate
            )
            step = make_train_step(loss, optimizer)
            state = init_state(adapter, optimizer, jax.random.key(0))
            state, _ = jax.lax.scan(
                lambda s, places: (step(s, frozen, places)[0], None), state, order
            )
            return state.adapter

        def scored(adapter: Any, frozen: Any, batch: Any) -> jax.Array:
            return predict(adapter, frozen, **batch).argmax(-1)

        return jax.jit(train), jax.jit(scored)


SPLITS = ('train', 'validation', 'test')


def orders(examples: int, run: Run) -> np.ndarray:
    """The indices of the examples of each batch, `[steps, batch]`; each epoch has a new order.

    Example:
        >>> orders(4, Run(steps=4, batch_size=2, rate=0.1, seed=0)).reshape(2, 4).tolist()
        [[2, 0, 1, 3], [3, 2, 1, 0]]
    """
    rng = np.random.default_rng(run.seed)
    wanted = run.steps * run.batch_size
    epochs = -(-wanted // examples)
    places = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
    return places[:wanted].reshape(run.steps, run.batch_size).astype(np.int32)


def falling(step: Any, steps: int) -> jax.Array:
    """The rate at a step as a share of its peak: up for a tenth of the steps, then down to 0.

    Example:
        >>> [float(falling(step, 10)) for step in (0, 1, 5, 10)]
        [1.0, 1.0, 0.5555555820465088, 0.0]
    """
    warm = max(1, steps // 10)
    return jnp.minimum((step + 1) / warm, (steps - step) / max(1, steps - warm))
