"""Many runs in one program: their steps and their scores."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import peftjax
from peftjax.sweep.groups import Ready, side_by_side, widest_of
from peftjax.train import share, stack, unstack
from peftjax.train.data import batches as data
from peftjax.train.placement import Placement
from peftjax.train.run import example_batch
from peftjax.train.scoring import Scored, SplitScores, score
from peftjax.train.step import TrainState
from peftjax.train.task import Batch, Beside, Trained
from peftjax.train.window import Part


class Together:
    """`peftjax.train.engine.Engine` of many runs.

    Finished runs are still computed until they are half of the program, because a smaller program
    would have to be compiled.
    """

    def __init__(
        self, ready: Sequence[Ready], states: Sequence[TrainState], besides: Sequence[Beside]
    ):
        """Takes the runs at their start.

        Args:
            ready: built and traced.
            states: that each begins with.
            besides: what each does not train.
        """
        self.placement = Placement(None)
        self._ready, self._besides = ready, besides
        self._own = [jax.eval_shape(lambda state=state: state) for state in states]
        self._seeds = sorted({each.run.seed for each in ready})
        self._states = stack(states)
        self._left: set[int] = set()
        self._inside = list(range(len(ready)))
        # Built at the first step, when the remaining runs are known.
        self._built: _Program | None = None

    def batches(self) -> grain.DatasetIterator[Any]:
        task = self._ready[0].run.task
        return data.train_batches_of_seeds(
            task.splits['train'],
            batch_size=task.batch_size,
            lengths=task.lengths,
            seeds=self._seeds,
            steps=max(each.run.steps for each in self._ready),
        )

    def step(self, rows: Sequence[Batch]) -> list[Part]:
        inside = np.asarray(self._inside)
        return [(inside[places], metrics) for places, metrics in self._program().step(rows)]

    def tokens(self, tokens: Any) -> np.ndarray:
        return np.asarray(tokens)[[self._seeds.index(each.run.seed) for each in self._ready]]

    def flops(self, place: int = 0) -> float:
        return self._ready[place].flops

    def score(self, split: str, adapters: Mapping[int, Any] = MappingProxyType({})) -> SplitScores:
        program, inside = self._program(), self._inside
        others = {inside.index(place): adapter for place, adapter in adapters.items()}

        def one(batch: Batch, size: int) -> list[tuple[list[int], Scored]]:
            del size
            return [([inside[p] for p in places], s) for places, s in program.score(batch, others)]

        return score(self._ready[0].run.task, split, self.placement, len(self._ready), one)

    def state(self, place: int) -> TrainState:
        self._keep()
        return unstack(self._states, place, self._own[place])

    def trained(self, place: int) -> Trained:
        run = self._ready[place].run
        frozen = self._besides[place].frozen
        return Trained(run.model, run.transform, self.state(place).adapter, frozen, run.task)

    def leave(self, places: Sequence[int], step: int) -> None:
        del step
        self._left.update(places)
        if self._built is None:
            return
        self._built.leave([self._inside.index(place) for place in places])
        stay = [place for place in self._inside if place not in self._left]
        if stay and 2 * len(stay) <= len(self._inside):
            self._keep()
            self._inside, self._built = stay, None

    def snapshot(self, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The stacked states of all runs, and the runs in the program."""
        self._keep()
        raw = self._states._replace(key=jax.random.key_data(self._states.key))
        number = jnp.asarray(step, jnp.int32)
        return TrainState(number, jax.random.key(0), raw, ()), {'inside': self._inside}

    def load(self, state: TrainState, about: Mapping[str, Any]) -> None:
        raw = state.adapter
        self._states = raw._replace(key=jax.random.wrap_key_data(raw.key))
        self._inside, self._built = list(about['inside']), None

    def _program(self) -> '_Program':
        if self._built is None:
            # As wide as the widest remaining run.
            own = [unstack(self._states, place, self._own[place]) for place in self._inside]
            self._built = _Program(
                [self._ready[place] for place in self._inside],
                [self._besides[place] for place in self._inside],
                stack(own),
                self._seeds,
            )
            gone = [i for i, place in enumerate(self._inside) if place in self._left]
            self._built.leave(gone)
        return self._built

    def _keep(self) -> None:
        """Takes the states out of the program; entries beyond the widest run are zero."""
        if self._built is None or not self._built.moved:
            return
        inside = np.asarray(self._inside)

        def put(whole: jax.Array, part: jax.Array) -> jax.Array:
            return whole.at[(inside, *map(slice, part.shape[1:]))].set(part)

        self._states = jax.tree.map(put, self._states, self._built.states())


class _Program:
    """Runs in one program: their steps and their scores, compiled once for each shape.

    If they are not all computed side by side, parts of them go through it one after another.

    Attributes:
        moved: whether a step was taken since the states were read.
    """

    def __init__(
        self,
        rows: Sequence[Ready],
        besides: Sequence[Beside],
        states: TrainState,
        seeds: Sequence[int],
    ):
        """Places the runs.

        Args:
            rows: built and traced.
            besides: what each does not train.
            states: of all, stacked.
            seeds: of the batches of a step, in their order.
        """
        self._rows, self._widest = rows, widest_of(rows)
        self._task = rows[0].run.task
        self._seeds = [seeds.index(ready.run.seed) for ready in rows]
        shared, self._axes = share(besides)
        step = jax.vmap(self._widest.step, in_axes=(0, 0, self._axes, 0))
        self._step = jax.jit(step, donate_argnums=1)
        self._scored = jax.jit(jax.vmap(self._widest.run.scored, in_axes=(0, self._axes, None)))
        self._parts = [np.asarray(part) for part in self._cut(states, besides)]
        self._gone: set[int] = set()
        self.moved = False
        count = jax.local_device_count()
        even = count > 1 and len(self._parts) == 1 and len(rows) % count == 0
        self._mesh = Mesh(np.asarray(jax.local_devices()), ('rows',)) if even else None
        everywhere = jax.tree.map(lambda _: 0, states)
        self._states = [self._take(states, everywhere, part) for part in self._parts]
        self._beside = [self._take(shared, self._axes, part) for part in self._parts]
        numbers = stack([jax.tree.map(jnp.float32, ready.numbers) for ready in rows])
        each = jax.tree.map(lambda _: 0, numbers)
        self._numbers = [self._take(numbers, each, part) for part in self._parts]

    def _cut(self, states: TrainState, besides: Sequence[Beside]) -> list[list[int]]:
        """Places of the rows that go through the program at the same time."""
        size = side_by_side(self._task, len(self._rows))
        # Masks of dropout have the shape of a batch. For the same masks as in a single run, rows
        # whose batches may differ in length are not computed side by side.
        apart = len(self._task.lengths) > 1 and self._draws(states, besides)
        found: dict[int, list[int]] = {}
        for place, seed in sorted(enumerate(self._seeds), key=lambda pair: pair[1]):
            found.setdefault(seed if apart else 0, []).append(place)
        return [
            places[first : first + size]
            for places in found.values()
            for first in range(0, len(places), size)
        ]

    def _draws(self, states: TrainState, besides: Sequence[Beside]) -> bool:
        """Whether any of the rows draws noise in a step."""
        batch = example_batch(self._task)

        def draws(place: int) -> bool:
            numbers = jax.tree.map(jnp.float32, self._rows[place].numbers)
            state = jax.tree.map(lambda leaf: leaf[place], states)
            return peftjax.plan.draws(self._rows[place].step, numbers, state, besides[place], batch)

        return any(map(draws, range(len(self._rows))))

    def _take(self, tree: Any, axes: Any, part: np.ndarray) -> Any:
        """The rows of a part, split over devices if they divide evenly.

        Leaves that are one array in the tree are one array in the result.
        """
        leaves, structure = jax.tree.flatten(tree)
        flat = structure.flatten_up_to(axes)
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
        """Of all runs, in their order, on the first device."""
        self.moved = False
        order = np.argsort(np.concatenate(self._parts))
        parts = self._states
        if self._mesh is not None:
            parts = jax.device_put(parts, jax.local_devices()[0])
        return jax.tree.map(lambda *each: jnp.concatenate(each)[order], *parts)

    def step(self, by_seed: Sequence[Batch]) -> list[tuple[np.ndarray, Any]]:
        """One step of every run: the metrics of each part, with the places of its runs."""
        found, self.moved = [], True
        for i in self._busy():
            part = self._parts[i]
            batch = data.beside([by_seed[self._seeds[place]] for place in part])
            self._states[i], metrics = self._step(
                self._numbers[i], self._states[i], self._beside[i], batch
            )
            found.append((part, metrics))
        return found

    def score(self, batch: Batch, others: Mapping[int, Any]) -> list[tuple[list[int], Scored]]:
        """The scores of the runs on a batch, with their places; some runs with other adapters."""
        # All parts are under way before one is waited for.
        parts = {
            i: self._scored(self._adapters(i, others), self._beside[i], batch) for i in self._busy()
        }
        return [(self._parts[i].tolist(), scored) for i, scored in parts.items()]

    def _adapters(self, part: int, others: Mapping[int, Any]) -> Any:
        """The adapters of a part, some replaced by others; entries beyond these are zero."""
        adapters = self._states[part].adapter
        for i, place in enumerate(self._parts[part].tolist()):
            if place in others:
                adapters = jax.tree.map(
                    lambda whole, own, i=i: whole.at[(i, *map(slice, own.shape))].set(own),
                    adapters,
                    others[place],
                )
        return adapters
