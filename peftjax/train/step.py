"""One training step as a pure function: gradients for the adapter, and nothing else."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from peftjax.core.promotion import wider

LossFunction = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""`loss(adapter, frozen, batch, key) -> (scalar, {name: scalar})`.

A loss that is a mean returns as 'weight' the number that it was divided by (of examples, or of
answer tokens), so that each part of a batch counts as it would in the whole. A part of weight 0
does not count, whatever its loss and its gradients are.
"""


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

    The adapter is copied: a step that donates the state deletes the copy, and the caller's adapter
    stays.

    Example:
        >>> state = init_state({'a': jnp.ones(2)}, optax.sgd(0.1), jax.random.key(0))
        >>> int(state.step)
        0
    """
    adapter = jax.tree.map(jnp.copy, adapter)
    return TrainState(jnp.zeros((), jnp.int32), key, adapter, optimizer.init(adapter))


def make_train_step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    r"""Builds `step(state, frozen, batch) -> (state, metrics)`.

    For the adapter :math:`\phi` and the frozen numbers :math:`\theta`, a step computes
    :math:`g = \sum_i w_i \nabla_\phi L(\phi, \theta, b_i) / \sum_i w_i` over the parts
    :math:`b_i` of a batch and gives `g` to the optimiser. Only the adapter is differentiated, so
    `g` has its shapes and dtypes, and clipping `g` costs little. Sums are float32, or the adapter's
    dtype if it is wider. For complex leaves, `g` is the conjugate of what `jax.grad` returns: a
    step against it goes downhill.

    If all weights of a batch are 0, the adapter and the optimiser's state do not change. The batch
    counts as a step, and its metrics are 0.

    Args:
        loss_fn: `loss(adapter, frozen, batch, key)` returns a scalar loss and a dict of scalar
            metrics. Every step and every part gets a new key. The metric 'weight', if `loss_fn`
            returns it, is :math:`w_i`; the default is 1.
        optimizer: any optax transformation. If you want clipping, chain it before the optimiser.
        accumulate: number of parts into which the step splits the batch along its first axis. The
            parts run one after another, so memory holds the activations of one part only.
        axis_name: the axis name of `jax.pmap` or `jax.shard_map`, if the step runs inside one of
            them and each device holds a part of the batch. On a mesh with shardings, leave it None.

    Returns:
        The pure step, not compiled: use `jax.jit(step, donate_argnums=0)`. Its metrics are the
        metrics of `loss_fn` without 'weight', averaged like the loss, plus `loss` and `grad_norm`,
        the norm of `g`.

    Raises:
        ValueError: accumulate is less than 1; from the step, the batch cannot be split into equal
            parts.

    Example:
        >>> def loss_fn(adapter, frozen, batch, key):
        ...     return jnp.sum((adapter['a'] + frozen - batch) ** 2), {}
        >>> optimizer = optax.sgd(0.25)
        >>> step = jax.jit(make_train_step(loss_fn, optimizer), donate_argnums=0)
        >>> state = init_state({'a': jnp.zeros(2)}, optimizer, jax.random.key(0))
        >>> state, metrics = step(state, jnp.ones(2), jnp.asarray([1.0, 3.0]))
        >>> state.adapter['a'].tolist(), float(metrics['grad_norm'])
        ([0.0, 1.0], 4.0)
    """
    if accumulate < 1:
        raise ValueError(f'accumulate is {accumulate}; a batch has at least 1 part')
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    whole = accumulate == 1 and axis_name is None

    def weighed(adapter: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        """The sums of one part: gradients and metrics times its weight, and the weight."""
        (loss, metrics), grads = value_and_grad(adapter, frozen, batch, key)
        # Of a complex number, JAX gives the conjugate of the direction in which a loss rises.
        grads = jax.tree.map(jnp.conj, grads)
        rest = dict(metrics)
        weight = jnp.asarray(rest.pop('weight', 1.0), jnp.float32)
        if whole:  # The mean over one part is that part: its weight would only round it.
            weight = (weight != 0).astype(jnp.float32)
        sums = jax.tree.map(lambda leaf: _times(leaf, weight), (grads, {**rest, 'loss': loss}))
        return sums, weight

    def all_parts(adapter: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        if accumulate == 1:
            return weighed(adapter, frozen, batch, key)

        def add(total: Any, numbered: Any) -> tuple[Any, None]:
            number, part = numbered
            more = weighed(adapter, frozen, part, jax.random.fold_in(key, number))
            return jax.tree.map(jnp.add, total, more), None

        parts = jax.tree.map(lambda leaf: _cut(leaf, accumulate), batch)
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        shapes = jax.eval_shape(weighed, adapter, frozen, first, key)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, nothing, (jnp.arange(accumulate), parts))[0]

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        sums, weight = all_parts(state.adapter, frozen, batch, key)
        if axis_name is not None:
            sums, weight = jax.lax.psum((sums, weight), axis_name)
        counts = weight != 0
        divisor = jnp.where(counts, weight, 1.0)
        means, metrics = jax.tree.map(lambda leaf: leaf / divisor.astype(leaf.dtype), sums)
        grads = jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), means, state.adapter)
        old = state.adapter, state.opt_state
        with jax.numpy_dtype_promotion('standard'):  # optax computes float ** step count.
            updates, opt_state = optimizer.update(grads, state.opt_state, state.adapter)
            new = optax.apply_updates(state.adapter, updates), opt_state
            new = jax.tree.map(lambda new, old: jnp.where(counts, new, old), new, old)
        metrics = {**metrics, 'grad_norm': optax.tree.norm(means)}
        return TrainState(state.step + 1, state.key, *new), metrics

    return step


def _times(leaf: jax.Array, weight: jax.Array) -> jax.Array:
    """`leaf * weight` in float32 or wider; 0 for a weight of 0, whatever `leaf` is."""
    wide = leaf.astype(wider(leaf, weight))
    return jnp.where(weight == 0, jnp.zeros_like(wide), wide * weight.astype(wide.dtype))


def _cut(leaf: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]; the examples of a part are far apart in the batch.

    A device of a mesh holds neighbouring examples, so every device has a share of each part.
    """
    if leaf.shape[0] % parts:
        raise ValueError(f'a batch of {leaf.shape[0]} cannot be cut into {parts} equal parts')
    return jnp.swapaxes(leaf.reshape(-1, parts, *leaf.shape[1:]), 0, 1)
