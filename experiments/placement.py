"""Where a run's arrays lie: on one device, or on the mesh that its config describes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding

import peftjax
from experiments.config import Config
from peftjax.training import TrainState


class Placement:
    """The mesh of `config.mesh`, or None where all its axes are 1: then the first device is used.

    Of several processes, each holds its part of every array; all read the same rows.
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

    def batch(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """A batch of the host, split by examples.

        Raises:
            ValueError: its examples cannot be shared out evenly.
        """
        if self.mesh is None:
            return batch
        where = peftjax.batch_sharding(self.mesh)
        groups = self.mesh.shape['data'] * self.mesh.shape['fsdp']
        size = len(next(iter(batch.values())))
        if size % groups:
            raise ValueError(
                f'a batch of {size} examples cannot be shared by {groups} groups of devices (mesh '
                'data x fsdp): choose config.data.batch_size and eval_batch_size as multiples'
            )
        return {
            name: jax.make_array_from_callback(value.shape, where, value.__getitem__)
            for name, value in batch.items()
        }

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
    if not leaf.is_fully_addressable:
        return jax.device_put(leaf, where)
    return jax.make_array_from_callback(leaf.shape, where, np.asarray(leaf).__getitem__)
