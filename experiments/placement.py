"""Where a run's arrays lie: on one device, or on the mesh that its config describes."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

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

    def state(self, state: TrainState, model: peftjax.Model) -> TrainState:
        """A new run's state, where it belongs."""
        if self.mesh is None:
            return state
        return jax.device_put(state, peftjax.state_shardings(state, model, self.mesh))

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

    def compiled(self, step: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
        """A step that is compiled at its first call, its state donated and left where it lies."""
        if self.mesh is None:
            return jax.jit(step, donate_argnums=0)
        where = jax.tree.map(lambda leaf: leaf.sharding, state)
        return jax.jit(step, donate_argnums=0, out_shardings=(where, None))

    def in_force(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which steps are to be called."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
