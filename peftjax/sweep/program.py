"""The one program of a group of rows: its steps and its scores."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import peftjax
from peftjax.sweep.groups import Ready, example_batch, side_by_side, widest_of
from peftjax.train.data import batches as data
from peftjax.train.step import TrainState


class Together:
    """Rows in one program: their steps and their scores, compiled once for each shape.

    Where not all are computed side by side, parts of them go through it one after another.
    """

    def __init__(
        self,
        rows: Sequence[Ready],
        frozens: Sequence[peftjax.Frozen],
        states: TrainState,
        seeds: Sequence[int],
    ):
        """Places the rows.

        Args:
            rows: built and traced.
            frozens: what is frozen in each.
            states: of all, stacked.
            seeds: of the batches of a step, in their order.
        """
        self._rows, self._widest = rows, widest_of(rows)
        self._config = rows[0].row.config
        self._seeds = [seeds.index(ready.row.config.seed) for ready in rows]
        shared, self._axes = peftjax.train.share(frozens)
        step = jax.vmap(self._widest.step, in_axes=(0, 0, self._axes, 0))
        self._step = jax.jit(step, donate_argnums=1)
        self._sums = jax.jit(jax.vmap(self._widest.run.sums, in_axes=(0, self._axes, None)))
        self._parts = [np.asarray(part) for part in self._cut(states, frozens)]
        self._gone: set[int] = set()
        count = jax.local_device_count()
        even = count > 1 and len(self._parts) == 1 and len(rows) % count == 0
        self._mesh = Mesh(np.asarray(jax.local_devices()), ('rows',)) if even else None
        everywhere = jax.tree.map(lambda _: 0, states)
        self._states = [self._take(states, everywhere, part) for part in self._parts]
        self._frozen = [self._take(shared, self._axes, part) for part in self._parts]
        numbers = peftjax.train.stack([jax.tree.map(jnp.float32, ready.numbers) for ready in rows])
        each = jax.tree.map(lambda _: 0, numbers)
        self._numbers = [self._take(numbers, each, part) for part in self._parts]

    def _cut(self, states: TrainState, frozens: Sequence[peftjax.Frozen]) -> list[list[int]]:
        """Places of the rows that go through the program at the same time."""
        size = side_by_side(self._config, len(self._rows))
        # Masks of dropout have the shape of a batch: so that they are those of the row alone, rows
        # whose batches may have other lengths are not side by side.
        apart = len(self._config.data.lengths) > 1 and self._draws(states, frozens)
        found: dict[int, list[int]] = {}
        for place, seed in sorted(enumerate(self._seeds), key=lambda pair: pair[1]):
            found.setdefault(seed if apart else 0, []).append(place)
        return [
            places[first : first + size]
            for places in found.values()
            for first in range(0, len(places), size)
        ]

    def _draws(self, states: TrainState, frozens: Sequence[peftjax.Frozen]) -> bool:
        """Whether any of the rows draws noise in a step."""
        batch = example_batch(self._widest.run.task, self._config)

        def draws(place: int) -> bool:
            numbers = jax.tree.map(jnp.float32, self._rows[place].numbers)
            state = jax.tree.map(lambda leaf: leaf[place], states)
            return peftjax.plan.draws(self._rows[place].step, numbers, state, frozens[place], batch)

        return any(map(draws, range(len(self._rows))))

    def _take(self, tree: Any, axes: Any, part: np.ndarray) -> Any:
        """The rows of a part, each device with its share where that is even.

        Leaves that are one array in the tree are one array in the result.
        """
        flat = jax.tree.leaves(axes, is_leaf=lambda axis: axis is None)
        leaves, structure = jax.tree.flatten(tree)
        pairs = {id(leaf): (leaf, axis) for leaf, axis in zip(leaves, flat, strict=True)}
        taken = {name: self._take_leaf(leaf, axis, part) for name, (leaf, axis) in pairs.items()}
        return jax.tree.unflatten(structure, [taken[id(leaf)] for leaf in leaves])

    def _take_leaf(self, leaf: jax.Array, axis: int | None, part: np.ndarray) -> jax.Array:
        rows = leaf if axis is None else leaf[part]
        if self._mesh is None:
            return rows
        spec = PartitionSpec(None if axis is None else 'rows')
        return jax.device_put(rows, NamedSharding(self._mesh, spec))

    def leave(self, places: Sequence[int]) -> None:
        """Rows that need no more steps: a part of such rows alone is not computed."""
        self._gone.update(places)

    def _busy(self) -> list[int]:
        return [i for i, part in enumerate(self._parts) if not self._gone.issuperset(part.tolist())]

    def states(self) -> TrainState:
        """Of all rows, in their order, on the first device."""
        order = np.argsort(np.concatenate(self._parts))
        parts = self._states
        if self._mesh is not None:
            parts = jax.device_put(parts, jax.local_devices()[0])
        return jax.tree.map(lambda *each: jnp.concatenate(each)[order], *parts)

    def of_rows(self, by_seed: np.ndarray) -> np.ndarray:
        """Each row's part of what each seed has."""
        return by_seed[self._seeds]

    def step(self, by_seed: Sequence[data.Batch]) -> list[tuple[np.ndarray, Any]]:
        """One step of every row: the metrics of each part, with the places of its rows."""
        found = []
        for i in self._busy():
            part = self._parts[i]
            batch = data.beside([by_seed[self._seeds[place]] for place in part])
            self._states[i], metrics = self._step(
                self._numbers[i], self._states[i], self._frozen[i], batch
            )
            found.append((part, metrics))
        return found

    def evaluate(self, split: str) -> list[dict[str, float]]:
        """Each row's scores on a split, by name."""
        totals = {name: np.zeros(len(self._rows)) for name in ('loss', 'correct', 'weights')}
        for batch in data.eval_batches(
            self._rows[0].run.task.splits[split],
            batch_size=self._config.data.eval_batch_size,
            lengths=self._config.data.lengths,
        ):
            # All parts are under way before one is waited for.
            parts = {
                i: self._sums(self._states[i].adapter, self._frozen[i], batch) for i in self._busy()
            }
            for i, sums in parts.items():
                for name, total in totals.items():
                    total[self._parts[i]] += np.asarray(sums[name], np.float64)
        weights = np.maximum(totals['weights'], 1e-30)  # 0 of rows that are not computed
        losses, accuracies = (totals[name] / weights for name in ('loss', 'correct'))
        return [
            {f'{split}/loss': float(loss), f'{split}/accuracy': float(accuracy)}
            for loss, accuracy in zip(losses, accuracies, strict=True)
        ]
