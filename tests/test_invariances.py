"""What LoRA's numbers mean: changes of alpha, start and rates that leave every step the same.

Schulman et al. 2025, "LoRA Without Regret": with Adam, `alpha -> alpha / (p q)`, `A -> p A`,
`lr_A -> p lr_A`, `lr_B -> q lr_B`, `eps_A -> eps_A / p`, `eps_B -> eps_B / q` is the same run;
and the first steps of all ranks are the same in expectation, because alpha is divided by the rank.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
from peftjax import testing

MLP = testing.tiny_mlp()
X = jax.random.normal(jax.random.key(1), (16, 4))
Y = jax.random.normal(jax.random.key(2), (16, 3))
# The largest is what the optimiser divides by: were eps left alone, the losses would part.
EPS = 1e-3


def _leaf_of(path) -> str:
    return path[-1].key


def _optimizer(p: float, q: float) -> optax.GradientTransformation:
    adam: Any = {'a': optax.adam(p * 1e-2, eps=EPS / p), 'b': optax.adam(q * 1e-2, eps=EPS / q)}

    def labels(adapter):
        return jax.tree_util.tree_map_with_path(lambda path, _: _leaf_of(path), adapter)

    return optax.multi_transform(adam, labels)


def _losses(p: float, q: float, alpha_by: float, start_by: float, steps: int = 60) -> list[float]:
    tx = peftjax.lora(rank=2, alpha=8.0 * alpha_by, targets=r'hidden|out')
    adapter, frozen = tx.init(jax.random.key(0), MLP)
    adapter = jax.tree_util.tree_map_with_path(
        lambda path, leaf: start_by * leaf if _leaf_of(path) == 'a' else leaf, adapter
    )
    predict, optimizer = peftjax.adapt(MLP, tx), _optimizer(p, q)

    @jax.jit
    def step(adapter, state):
        def loss(adapter):
            return ((predict(adapter, frozen, X) - Y) ** 2).mean()

        value, gradient = jax.value_and_grad(loss)(adapter)
        with jax.numpy_dtype_promotion('standard'):  # optax's own count of steps.
            updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(adapter, updates), state, value

    state, losses = optimizer.init(adapter), []
    for _ in range(steps):
        adapter, state, loss = step(adapter, state)
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize(('p', 'q'), [(2.0, 1.0), (1.0, 4.0), (0.5, 8.0), (16.0, 0.0625)])
def test_alpha_start_and_rates_of_powers_of_two_give_the_same_losses_to_the_bit(p, q):
    assert _losses(p, q, 1 / (p * q), p) == _losses(1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    'change', [(2.0, 1.0, 1.0, 2.0), (2.0, 1.0, 0.5, 1.0), (1.0, 2.0, 1.0, 1.0)]
)
def test_a_part_of_the_change_gives_other_losses(change):
    assert _losses(*change) != _losses(1.0, 1.0, 1.0, 1.0)


def _first_change(rank: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of a weight by one step of Adam over many starts, and its standard error."""
    tx = peftjax.lora(rank=rank, alpha=8.0, targets=r'hidden')
    predict = peftjax.adapt(MLP, tx)
    optimizer = optax.adam(1e-3, eps=0.0)

    def change(key):
        adapter, frozen = tx.init(key, MLP)

        def loss(adapter):
            return ((predict(adapter, frozen, X) - Y) ** 2).mean()

        # A has no gradient yet: B is zero, and Adam without eps would divide 0 by 0.
        gradient = jax.grad(loss)(adapter)
        with jax.numpy_dtype_promotion('standard'):
            updates, _ = optimizer.update(gradient, optimizer.init(adapter))
        updates = jax.tree.map(jnp.nan_to_num, updates)
        merged = tx.merge(optax.apply_updates(adapter, updates), frozen)
        return merged['hidden']['kernel'] - MLP.params['hidden']['kernel']

    changes = jax.jit(jax.vmap(change))(jax.random.split(jax.random.key(7), draws))
    changes = np.asarray(changes, np.float64)
    return changes.mean(0), changes.std(0) / np.sqrt(draws)


def test_the_first_step_of_every_rank_is_the_same_in_expectation():
    draws = 20_000
    one, error = _first_change(1, draws)
    assert np.abs(one).max() > 20 * error.max()  # There is something to compare.
    for rank in (2, 4):
        other, its_error = _first_change(rank, draws)
        assert (np.abs(one - other) < 5 * np.hypot(error, its_error)).all()
    assert (its_error < error).all()  # A larger rank draws nearer to the mean.
