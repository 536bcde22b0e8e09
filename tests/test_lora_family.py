"""The mathematics of LoRA's starts and of AdaLoRA's factors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
import peftjax.train

KERNEL = 'hidden/kernel'


@pytest.fixture(name='mlp')
def _mlp():
    return peftjax.testing.tiny_mlp()


def _start(mlp, **settings):
    tx = peftjax.lora(targets=r'hidden', **settings)
    adapter, frozen = tx.init(jax.random.key(1), mlp)
    kernel, left = (params['hidden']['kernel'] for params in (mlp.params, frozen.params))
    return adapter[KERNEL], np.asarray(kernel), np.asarray(left)


def test_pissa_is_the_best_approximation(mlp):
    entry, kernel, base = _start(mlp, rank=2, alpha=6, init='pissa')
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    best = (left[:, :2] * values[:2]) @ right[:2]
    np.testing.assert_allclose(3 * entry['a'] @ entry['b'], best, atol=1e-6)
    np.testing.assert_allclose(np.linalg.svd(base)[1], [*values[2:], 0, 0], atol=1e-6)
    # The singular values are shared evenly.
    np.testing.assert_allclose(
        jnp.linalg.norm(entry['a'], axis=0), jnp.linalg.norm(entry['b'], axis=1), rtol=1e-5
    )


def test_pissa_of_full_rank_leaves_nothing(mlp):
    _, _, base = _start(mlp, rank=4, init='pissa')
    np.testing.assert_allclose(base, 0, atol=1e-6)


def test_olora_has_orthonormal_rows_and_takes_its_part(mlp):
    entry, kernel, base = _start(mlp, rank=3, alpha=1.5, init='olora')
    b = np.asarray(entry['b'])
    np.testing.assert_allclose(b @ b.T, np.eye(3), atol=1e-6)
    # A is the projection of W on those rows.
    np.testing.assert_allclose(entry['a'], kernel @ b.T, atol=1e-6)
    np.testing.assert_allclose(base, kernel - 0.5 * kernel @ b.T @ b, atol=1e-6)


def test_gaussian_has_its_deviation():
    mlp = peftjax.testing.tiny_mlp()
    draws = jax.vmap(
        lambda key: peftjax.lora(rank=4, init='gaussian', targets=r'hidden').start(key, mlp)[KERNEL]
    )(jax.random.split(jax.random.key(0), 500))
    assert abs(float(draws['a'].std()) - 0.25) < 0.01
    assert not draws['b'].any()


def test_only_starts_from_the_weight_change_the_base(mlp):
    for init in ('kaiming', 'gaussian'):
        _, kernel, base = _start(mlp, rank=2, init=init)
        np.testing.assert_array_equal(kernel, base)


def test_given_start(mlp):
    given = np.arange(8.0, dtype=np.float32).reshape(4, 2)
    entry, kernel, base = _start(mlp, rank=2, init={KERNEL: given})
    np.testing.assert_array_equal(entry['a'], given)
    assert not entry['b'].any()
    np.testing.assert_array_equal(kernel, base)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'rank': 2, 'init': 'pisa'}, "'pissa'"),
        ({'rank': 3, 'init': {KERNEL: np.zeros((4, 2))}}, r'\(4, 2\).*hidden/kernel.*\(4, 3\)'),
        ({'rank': 2, 'init': {'hiden/kernel': np.zeros((4, 2))}}, 'near names.*hidden/kernel'),
        ({'rank': 5, 'init': 'pissa'}, 'rank 5.*hidden/kernel'),
    ],
)
def test_wrong_starts_raise(mlp, settings, words):
    with pytest.raises(ValueError, match=words):
        _start(mlp, **settings)


@pytest.mark.parametrize(
    'tx',
    [
        peftjax.lora(rank=9, alpha=3, targets=r'hidden'),
        peftjax.dora(rank=9, alpha=3, targets=r'hidden'),
        peftjax.lora_fa(rank=9, alpha=3, targets=r'hidden'),
        peftjax.adalora(init_rank=9, alpha=3, targets=r'hidden'),
        peftjax.hira(rank=9, targets=r'hidden'),
        peftjax.delora(rank=9, targets=r'hidden'),
    ],
    ids=lambda tx: tx.about.name,
)
def test_a_rank_above_both_sides_of_a_matrix_computes_what_it_merges_to(mlp, tx):
    fresh, frozen = tx.init(jax.random.key(0), mlp)
    adapter = peftjax.testing.perturb(fresh, 1, 0.3)
    x = jax.random.normal(jax.random.key(2), (5, 4))
    ours = peftjax.adapt(mlp, tx)(adapter, frozen, x)
    merged = mlp.apply(tx.merge(adapter, frozen), x)
    np.testing.assert_allclose(ours, merged, rtol=1e-5, atol=1e-5)
    assert np.abs(ours - mlp.apply(mlp.params, x)).max() > 1e-2


@pytest.mark.parametrize(
    'make', [functools.partial(peftjax.lora, init='olora'), peftjax.loftq], ids=['olora', 'loftq']
)
def test_a_rank_above_the_terms_of_a_decomposition_raises(mlp, make):
    with pytest.raises(ValueError, match='rank 5.*hidden/kernel.*write at most rank=4'):
        make(rank=5, targets=r'hidden').init(jax.random.key(0), mlp)


def test_orthogonality_of_known_factors(mlp):
    tx = peftjax.adalora(init_rank=2, targets=r'hidden')
    entry = tx.init(jax.random.key(0), mlp)[0][KERNEL]
    p = np.array([[3, 0], [0, 1], [0, 0], [0, 0]], np.float32)
    q = np.eye(2, 8, dtype=np.float32)

    def adapter(p, q):
        return {KERNEL: entry.replace(p=p, q=q)}

    assert float(peftjax.orthogonality(adapter(p, q))) == 64.0
    assert float(peftjax.orthogonality(adapter(p, q), squared=False)) == 4.0
    # In a chain, and where the factors are orthogonal: no value, and no slope that is not finite.
    biases = peftjax.Entry('select', {'out/bias': jnp.zeros(3)})
    exact = (adapter(np.eye(4, 2, dtype=np.float32), q), biases)
    for squared in (True, False):
        value, slopes = jax.value_and_grad(
            lambda a, squared=squared: peftjax.orthogonality(a, squared)
        )(exact)
        assert float(value) < 1e-15
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    with pytest.raises(ValueError, match='no triplets'):
        peftjax.orthogonality(biases)


def test_given_first_factors_are_those_that_stay(mlp):
    a = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
    tx = peftjax.lora_fa(rank=2, alpha=6, a={KERNEL: a}, targets=r'hidden')
    adapter, frozen = tx.init(jax.random.key(0), mlp)
    b = np.ones((2, 8), np.float32)
    moved = {KERNEL: adapter[KERNEL].replace(b=b)}
    merged = tx.merge(moved, frozen)['hidden']['kernel']
    np.testing.assert_allclose(merged - mlp.params['hidden']['kernel'], 3 * a @ b, atol=1e-6)


@pytest.mark.parametrize(
    ('given', 'told'),
    [
        ({KERNEL: np.zeros((4, 3))}, r'\(4, 3\) for .*needs an array of \(4, 2\)'),
        ({'hiden/kernel': np.zeros((4, 2))}, 'for .*hiden/kernel.*do not cover'),
        ({}, "nothing for 'hidden/kernel'"),
    ],
)
def test_given_first_factors_that_do_not_fit_raise(mlp, given, told):
    with pytest.raises(ValueError, match=told):
        peftjax.lora_fa(rank=2, a=given, targets=r'hidden').init(jax.random.key(0), mlp)


def _weight_slope(tx, adapter, frozen, slope):
    """The gradients of the adapter where that of the merged kernel is `slope`."""

    def loss(adapter):
        return jnp.vdot(tx.merge(adapter, frozen)['hidden']['kernel'], slope)

    return jax.grad(loss)(adapter)


@pytest.mark.parametrize('kind', ['alone', 'chain', 'named'])
def test_the_projected_step_of_lora_fa_is_the_closest_to_that_of_the_weight(mlp, kind):
    tx = peftjax.lora_fa(rank=2, alpha=6, targets=r'hidden')
    bias = peftjax.select(r'out/bias')
    whole = {
        'alone': tx,
        'chain': peftjax.chain(bias, tx),
        'named': peftjax.named_chain({'bias': bias, 'fa': tx}),
    }[kind]
    adapter, frozen = whole.init(jax.random.key(0), mlp)
    slope = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    gradients = _weight_slope(whole, adapter, frozen, slope)
    optimizer = peftjax.train.lora_fa_projection(frozen.own)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(adapter), adapter)
    assert jax.tree.structure(updates) == jax.tree.structure(adapter)
    part = {'alone': lambda tree: tree, 'chain': lambda tree: tree[1], 'named': lambda t: t['fa']}
    a = np.asarray(part[kind](frozen.own)[KERNEL]['a'])
    found = 3 * a @ np.asarray(part[kind](updates)[KERNEL]['b'])
    closest = a @ np.linalg.lstsq(a, slope, rcond=None)[0]
    np.testing.assert_allclose(found, closest, rtol=1e-4, atol=1e-5)


def test_the_projection_needs_frozen_factors(mlp):
    _, frozen = peftjax.lora(rank=2, targets=r'hidden').init(jax.random.key(0), mlp)
    with pytest.raises(ValueError, match='no frozen factors of lora_fa'):
        peftjax.train.lora_fa_projection(frozen.own)


def test_kasa_drops_the_smallest_singular_values(mlp):
    tx = peftjax.kasa(rank=1, alpha=2, targets=r'hidden')
    adapter, frozen = tx.init(jax.random.key(0), mlp)
    left, values, right = np.linalg.svd(mlp.params['hidden']['kernel'], full_matrices=False)
    best = (left[:, :3] * values[:3]) @ right[:3]
    np.testing.assert_allclose(frozen.params['hidden']['kernel'], best, atol=1e-6)
    entry = peftjax.testing.perturb(adapter, seed=1)[KERNEL]
    change = 2 * (entry['a'] * entry['diag'][None]) @ entry['b']
    merged = tx.merge({KERNEL: entry}, frozen)['hidden']['kernel']
    np.testing.assert_allclose(merged, best + change, atol=1e-5)
    with pytest.raises(ValueError, match='leaves no singular value of .*at most rank=3'):
        peftjax.kasa(rank=4, targets=r'hidden').init(jax.random.key(0), mlp)


def test_a_bias_of_lora_is_a_part_of_the_modules_own(mlp):
    tx = peftjax.lora(rank=2, alpha=6, bias=True, targets=r'hidden')
    adapter, frozen = tx.init(jax.random.key(0), mlp)
    entry = peftjax.testing.perturb(adapter, seed=1)[KERNEL]
    merged = tx.merge({KERNEL: entry}, frozen)['hidden']
    np.testing.assert_allclose(
        merged['bias'], mlp.params['hidden']['bias'] + 3 * entry['bias'], atol=1e-6
    )
    with pytest.raises(ValueError, match="init='pissa' starts from the weight"):
        peftjax.lora(rank=2, bias=True, init='pissa', targets=r'hidden')


def test_a_bias_of_lora_beside_a_matrix_without_one_does_not_merge():
    dense, x = nn.Dense(3, use_bias=False), jnp.ones((2, 4))
    model = peftjax.wrap(dense, dense.init(jax.random.key(0), x), x)
    tx = peftjax.lora(rank=2, alpha=6, bias=True, targets=r'kernel')
    adapter, frozen = tx.init(jax.random.key(0), model)
    entry = peftjax.testing.perturb(adapter, seed=1)['kernel']
    found = peftjax.adapt(model, tx)({'kernel': entry}, frozen, x)
    weight = model.params['kernel'] + 3 * entry['a'] @ entry['b']
    np.testing.assert_allclose(found, x @ weight + 3 * entry['shift'][None], atol=1e-5)
    for act in (tx.merge, lambda *both: peftjax.merging.delta(model, tx, *both)):
        with pytest.raises(peftjax.MergeError, match='nothing can be merged'):
            act({'kernel': entry}, frozen)
