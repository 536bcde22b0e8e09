"""Where a run's arrays lie: on one device, or on the mesh that its config describes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding

import peftjax
from peftjax.train.config import Config
from peftjax.train.step import TrainState


class Placement:
    """The mesh of `config.mesh`, or None where all its axes are 1: then the first device is used.

    Of several processes, each reads the rows and holds the parts of arrays of its own devices.
    """

    def __init__(self, config: Config):
        sizes = dict(config.mesh)
        alone = all(size == 1 for size in sizes.values()) and jax.process_count() == 1
        self.mesh: Mesh | None = None if alone else peftjax.make_mesh(**sizes)

    @property
    def devices(self) -> int:
        """How many share the run."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def speaks(self) -> bool:
        """Whether this process writes the log and the results; of several, one does."""
        return jax.process_index() == 0

    def agreed(self, asked: bool) -> bool:
        """Whether any process was asked. Of several, all must call it at the same step."""
        if jax.process_count() == 1:
            return asked
        return bool(np.any(multihost_utils.process_allgather(np.asarray(asked))))

    def state(self, state: TrainState, model: peftjax.Model) -> TrainState:
        """A new run's state, where it belongs; made alike in every process."""
        if self.mesh is None:
            return state
        raw = state._replace(key=jax.random.key_data(state.key))
        where = peftjax.state_shardings(raw, model, self.mesh)
        placed = jax.tree.map(_put, raw, where)
        return placed._replace(key=jax.random.wrap_key_data(placed.key))

    def frozen(self, frozen: peftjax.Frozen, model: peftjax.Model) -> peftjax.Frozen:
        """All that does not train, where it belongs; made alike in every process."""
        if self.mesh is None:
            return frozen
        return jax.tree.map(_put, frozen, peftjax.frozen_shardings(frozen, model, self.mesh))

    def mine(self, size: int) -> np.ndarray:
        """Which of the `size` rows of a batch this process's devices hold.

        Raises:
            ValueError: they cannot be shared out evenly.
        """
        if self.mesh is None:
            return np.arange(size)
        groups = self.mesh.shape['data'] * self.mesh.shape['fsdp']
        if size % groups:
            raise ValueError(
                f'a batch of {size} examples cannot be shared by {groups} groups of devices (mesh '
                'data x fsdp): choose config.data.batch_size and eval_batch_size as multiples'
            )
        where = peftjax.batch_sharding(self.mesh).addressable_devices_indices_map((size,))
        held = [np.arange(size)[index] for index in where.values() if index is not None]
        return np.unique(np.concatenate(held))

    def batch(self, rows: dict[str, np.ndarray], size: int) -> dict[str, Any]:
        """A batch of `size` rows, of which the host has `mine(size)`, split by examples."""
        if self.mesh is None:
            return rows
        where, mine = peftjax.batch_sharding(self.mesh), self.mine(size)

        def part(value: np.ndarray) -> jax.Array:
            def at(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(size)
                return value[np.searchsorted(mine, np.arange(start, stop))]

            return jax.make_array_from_callback((size, *value.shape[1:]), where, at)

        return {name: part(value) for name, value in rows.items()}

    def step(self, step: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
        """A step that is compiled at its first call, its state donated and left where it lies."""
        if self.mesh is None:
            return jax.jit(step, donate_argnums=0)
        where = jax.tree.map(lambda leaf: leaf.sharding, state)
        return self._on_mesh(jax.jit(step, donate_argnums=0, out_shardings=(where, None)))

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
