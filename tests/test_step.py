"""One step: parts of a batch count by their weights, in float32, and a weight of 0 for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import peftjax
from peftjax.train import init_state, make_train_step

LENGTHS = np.random.default_rng(0).integers(1000, 16384, 8)
MASK = jnp.asarray(np.arange(16384)[None] < LENGTHS[:, None], jnp.float32)
ROWS = jnp.asarray(np.random.default_rng(1).normal(size=(8, 16384, 2)) + 5, jnp.float32)


def _mean(adapter, frozen, batch, key):
    """A mean over tokens, 0 / 0 where there are none."""
    del frozen, key
    count = batch['mask'].sum()
    square = (adapter['a'].astype(jnp.float32)[None, None] - batch['x']) ** 2
    loss = (square * batch['mask'][..., None]).sum() / count
    return loss, {'weight': count, 'twice': 2 * loss}


def _start(optimizer, dtype=jnp.float32):
    return init_state({'a': jnp.ones(2, dtype)}, optimizer, jax.random.key(0))


def _step(batch, *, dtype=jnp.float32, optimizer=None, **options):
    optimizer = optax.sgd(1.0) if optimizer is None else optimizer
    step = jax.jit(make_train_step(_mean, optimizer, **options))
    return step(_start(optimizer, dtype), (), batch)


@pytest.mark.parametrize('parts', [1, 4, 8])
@pytest.mark.parametrize(
    ('dtype', 'error'), [(jnp.float32, 1e-6), (jnp.float16, 2**-11), (jnp.bfloat16, 2**-8)]
)
def test_sums_over_parts_are_float32_whatever_trains(dtype, error, parts):
    """Weights of some 60,000 tokens are beyond float16, and their sums beyond bfloat16's digits."""
    batch = {'x': ROWS, 'mask': MASK}
    state, metrics = _step(batch, dtype=dtype, accumulate=parts)
    plain = np.asarray(ROWS, np.float64)[np.asarray(MASK, bool)]
    slope = 2 * (1 - plain.mean(0))
    assert state.adapter['a'].dtype == dtype
    # One rounding of the gradient, and one of the adapter that it is subtracted from.
    np.testing.assert_allclose(
        np.asarray(state.adapter['a'], np.float64), 1 - slope, rtol=error * (1 + 8 / 9) + 1e-6
    )
    loss = ((1 - plain) ** 2).sum(-1).mean()
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics['twice'], 2 * loss, rtol=1e-5)
    np.testing.assert_allclose(metrics['grad_norm'], np.linalg.norm(slope), rtol=2 * error)


@pytest.mark.parametrize('empty', [(0, 4), (1, 2, 3, 5, 6, 7)])
def test_a_part_without_weight_counts_for_nothing(empty):
    """Rows 0 and 4 are the first of four parts, as examples of one part lie far apart."""
    mask = MASK.at[jnp.asarray(empty)].set(0)
    left = [row for row in range(8) if row not in empty]
    state, metrics = _step({'x': ROWS, 'mask': mask}, accumulate=4)
    alone, expected = _step({'x': ROWS[jnp.asarray(left)], 'mask': MASK[jnp.asarray(left)]})
    np.testing.assert_allclose(state.adapter['a'], alone.adapter['a'], rtol=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)


@pytest.mark.parametrize('parts', [1, 4])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_batch_without_weight_changes_nothing(dtype, parts):
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    step = jax.jit(make_train_step(_mean, optimizer, accumulate=parts))
    full, nothing = ({'x': ROWS, 'mask': mask} for mask in (MASK, jnp.zeros_like(MASK)))
    before, _ = step(_start(optimizer, dtype), (), full)
    after, metrics = step(before, (), nothing)
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.adapter, after.opt_state),
        (before.adapter, before.opt_state),
    )
    assert {name: float(value) for name, value in metrics.items()} == {
        'loss': 0.0,
        'twice': 0.0,
        'grad_norm': 0.0,
    }
    assert int(after.step) == 2
    again, _ = step(after, (), full)
    assert np.isfinite(np.asarray(again.adapter['a'], np.float32)).all()
    assert int(again.opt_state[0].count) == 2


def test_a_device_without_weight_counts_for_nothing():
    optimizer, mesh = optax.sgd(1.0), peftjax.make_mesh(data=8)
    run = jax.jit(
        jax.shard_map(
            make_train_step(_mean, optimizer, axis_name='data'),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec('data')),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )
    mask = MASK.at[3].set(0)
    state, metrics = run(_start(optimizer), (), {'x': ROWS, 'mask': mask})
    alone, expected = _step({'x': ROWS, 'mask': mask})
    np.testing.assert_allclose(state.adapter['a'], alone.adapter['a'], rtol=1e-6)
    np.testing.assert_allclose(metrics['loss'], expected['loss'], rtol=1e-6)


def test_a_weight_that_is_not_a_number_is_not_taken_for_none():
    state, metrics = _step({'x': ROWS, 'mask': MASK.at[0, 0].set(jnp.nan)}, accumulate=4)
    assert np.isnan(state.adapter['a']).all() and np.isnan(metrics['loss'])


def test_the_frozen_part_of_a_method_is_an_argument():
    """Another alpha is other data: the program of the first run takes it."""
    mlp, x = peftjax.testing.tiny_mlp(), jnp.ones((2, 4))
    optimizer, traced = optax.sgd(0.1), []
    first, second = (peftjax.lora(rank=2, alpha=alpha, targets=r'hidden') for alpha in (2.0, 8.0))

    def step_of(tx):
        predict = peftjax.adapt(mlp, tx)

        def loss(adapter, frozen, batch, key):
            del key
            traced.append(tx)
            return (predict(adapter, frozen, batch) ** 2).mean(), {}

        return jax.jit(make_train_step(loss, optimizer))

    def start(tx):
        adapter, frozen = tx.init(jax.random.key(0), mlp)
        moved = peftjax.testing.perturb(adapter, seed=0)
        return init_state(moved, optimizer, jax.random.key(1)), frozen

    step = step_of(first)
    for tx in (first, second):
        state, frozen = start(tx)
        found, alone = step(state, frozen, x), step_of(tx)(state, frozen, x)
        jax.tree.map(
            lambda mine, theirs: np.testing.assert_allclose(mine, theirs, rtol=1e-6),
            (found[0].adapter, found[1]),
            (alone[0].adapter, alone[1]),
        )
    assert traced == [first, first, second]
