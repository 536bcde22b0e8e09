"""Where a run's arrays lie: on one device, or on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

import peftjax
from peftjax.train.settings import MeshSettings
from peftjax.train.step import TrainState
from peftjax.train.task import Beside


class Placement:
    """A mesh of devices; None uses the first device.

    Each process reads only the rows, and holds only the parts of arrays, of its own devices.
    """

    def __init__(self, mesh: Mesh | None):
        self.mesh = mesh

    @classmethod
    def of(cls, sizes: MeshSettings) -> 'Placement':
        """The mesh of these sizes; None if all are 1 and there is one process."""
        axes = dataclasses.asdict(sizes)
        alone = all(size == 1 for size in axes.values()) and jax.process_count() == 1
        return cls(None if alone else peftjax.make_mesh(**axes))

    @property
    def devices(self) -> int:
        """Number of devices that share the run."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the log and the results; only the first one does."""
        return jax.process_index() == 0

    def agreed(self, asked: bool) -> bool:
        """Whether any process was asked to stop. All processes must call it at the same step."""
        if jax.process_count() == 1:
            return asked
        return bool(np.any(multihost_utils.process_allgather(np.asarray(asked))))

    def state(self, state: TrainState, model: peftjax.Model) -> TrainState:
        """Places a new run's state, which every process made alike."""
        if self.mesh is None:
            return state
        raw = state._replace(key=jax.random.key_data(state.key))
        where = peftjax.state_shardings(raw, model, self.mesh)
        placed = jax.tree.map(_put, raw, where)
        return placed._replace(key=jax.random.wrap_key_data(placed.key))

    def beside(self, beside: Beside, model: peftjax.Model) -> Beside:
        """Places everything that does not train, which every process made alike."""
        if self.mesh is None:
            return beside
        frozen = peftjax.frozen_shardings(beside.frozen, model, self.mesh)
        reference = None
        if beside.reference is not None:
            reference = peftjax.shardings(model, self.mesh)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        constants = jax.tree.map(lambda _: everywhere, beside.constants)
        where = Beside(frozen, reference, constants)
        # A leaf that is in the tree twice is placed once.
        placed: dict[int, jax.Array] = {}
        for leaf, place in zip(jax.tree.leaves(beside), jax.tree.leaves(where), strict=True):
            if id(leaf) not in placed:
                placed[id(leaf)] = _put(jnp.asarray(leaf), place)
        return jax.tree.map(lambda leaf: placed[id(leaf)], beside)

    def local(self, size: int) -> np.ndarray:
        """Which of the `size` rows of a batch this process's devices hold.

        Raises:
            ValueError: the rows cannot be divided evenly.
        """
        if self.mesh is None:
            return np.arange(size)
        groups = self.mesh.shape['data'] * self.mesh.shape['fsdp']
        if size % groups:
            raise ValueError(
                f'a batch of {size} examples cannot be shared by {groups} groups of devices (mesh '
                f'data x fsdp): make data.batch_size and data.eval_batch_size multiples of {groups}'
            )
        where = peftjax.batch_sharding(self.mesh).addressable_devices_indices_map((size,))
        held = [np.arange(size)[index] for index in where.values() if index is not None]
        return np.unique(np.concatenate(held))

    def batch(self, rows: dict[str, np.ndarray], size: int) -> dict[str, Any]:
        """Places a batch of `size` rows, split by examples; the host has the rows `local(size)`."""
        if self.mesh is None:
            return rows
        where, local = peftjax.batch_sharding(self.mesh), self.local(size)

        def part(value: np.ndarray) -> jax.Array:
            def at(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(size)
                return value[np.searchsorted(local, np.arange(start, stop))]

            return jax.make_array_from_callback((size, *value.shape[1:]), where, at)

        return {name: part(value) for name, value in rows.items()}

    def step(self, step: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
        """`step(numbers, state, beside, batch)`, compiled at its first call.

        The state is donated, and stays on its devices.
        """
        if self.mesh is None:
            return jax.jit(step, donate_argnums=1)
        where = jax.tree.map(lambda leaf: leaf.sharding, state)
        return self._on_mesh(jax.jit(step, donate_argnums=1, out_shardings=(where, None)))

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is compiled at its first call."""
        compiled = jax.jit(function)
        return compiled if self.mesh is None else self._on_mesh(compiled)

    def _on_mesh(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            assert self.mesh is not None
            with jax.set_mesh(self.mesh):
                return function(*args)

        return call


def _put(leaf: jax.Array, where: Sharding) -> jax.Array:
    if leaf.sharding.is_equivalent_to(where, leaf.ndim):
        return leaf
    if not leaf.is_fully_addressable:
        return jax.device_put(leaf, where)
    return jax.make_array_from_callback(leaf.shape, where, np.asarray(leaf).__getitem__)
