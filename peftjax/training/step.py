"""One training step as a pure function: gradients for the adapter, and nothing else."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

LossFunction = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""`loss(adapter, params, batch, key) -> (scalar, {name: scalar})`."""


class TrainState(NamedTuple):
    """All that a step changes: a pytree to donate to the step and to checkpoint whole.

    Attributes:
        step: int32 [], steps taken.
        key: the run's PRNG key; step n uses `fold_in(key, n)`, so it is never spent.
        adapter: the only tree that trains.
        opt_state: the optimiser's state for the adapter.
    """

    step: jax.Array
    key: jax.Array
    adapter: Any
    opt_state: optax.OptState


def init_state(adapter: Any, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step.

    The adapter is copied: `select` and `full` start from leaves of the base, and donating those to
    a step would delete them from the base as well.

    Example:
        >>> state = init_state({'a': jnp.ones(2)}, optax.sgd(0.1), jax.random.key(0))
        >>> int(state.step)
        0
    """
    adapter = jax.tree.map(jnp.copy, adapter)
    return TrainState(jnp.zeros((), jnp.int32), key, adapter, optimizer.init(adapter))


def make_train_step(
    loss_fn: LossFunction, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    r"""Builds `step(state, params, batch) -> (state, metrics)`.

    With adapter :math:`\phi` and frozen base :math:`\theta`, a step takes
    :math:`g = \nabla_\phi L(\phi, \theta, batch)` and applies the optimiser to `g`. The base is an
    argument that is never differentiated, so a norm or a clip of `g` costs the adapter's size only.

    Args:
        loss_fn: `loss(adapter, params, batch, key)`, gives the loss, a scalar, and a dict of scalar
            metrics. The key is new in every step.
        optimizer: any optax transformation; clipping belongs into its chain.

    Returns:
        The pure step, not compiled: use `jax.jit(step, donate_argnums=0)`. Its metrics are those of
        `loss_fn` with `loss` and `grad_norm`, the norm before the optimiser.

    Example:
        >>> def loss_fn(adapter, params, batch, key):
        ...     return jnp.sum((adapter['a'] + params - batch) ** 2), {}
        >>> optimizer = optax.sgd(0.25)
        >>> step = jax.jit(make_train_step(loss_fn, optimizer), donate_argnums=0)
        >>> state = init_state({'a': jnp.zeros(2)}, optimizer, jax.random.key(0))
        >>> state, metrics = step(state, jnp.ones(2), jnp.asarray([1.0, 3.0]))
        >>> state.adapter['a'].tolist(), float(metrics['grad_norm'])
        ([0.0, 1.0], 4.0)
    """

    def step(state: TrainState, params: Any, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = value_and_grad(state.adapter, params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.adapter)
        adapter = optax.apply_updates(state.adapter, updates)
        metrics = {**metrics, 'loss': loss, 'grad_norm': optax.tree.norm(grads)}
        return TrainState(state.step + 1, state.key, adapter, opt_state), metrics

    return step
