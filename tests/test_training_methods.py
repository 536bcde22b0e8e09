"""Optimisers and losses that belong to one method, against plain formulas."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax


def _adalora():
    mlp = peftjax.testing.tiny_mlp()
    tx = peftjax.adalora(init_rank=3, targets=r'.*')
    return peftjax.testing.perturb(tx.init(jax.random.key(0), mlp)[0], 5, 1.0)


def _slopes(adapter, step):
    return peftjax.testing.perturb(jax.tree.map(jnp.zeros_like, adapter), step, 1.0)


def _reference(adapter, steps, total, first, last, every, target):
    """The paper's algorithm with plain NumPy, one matrix and one step at a time."""
    weights = {k: {n: np.array(v) for n, v in e.items()} for k, e in adapter.items()}
    mean = {k: {n: 0 * v for n, v in e.items()} for k, e in weights.items()}
    doubt = {k: {n: 0 * v for n, v in e.items()} for k, e in weights.items()}
    gone = []
    budgets = []
    for t in range(1, steps + 1):
        slopes = _slopes(adapter, t)
        for k, entry in weights.items():
            for n in entry:
                now = np.abs(entry[n] * np.asarray(slopes[k][n]))
                mean[k][n] = 0.85 * mean[k][n] + 0.15 * now
                doubt[k][n] = 0.85 * doubt[k][n] + 0.15 * np.abs(now - mean[k][n])
                entry[n] = entry[n] - 0.1 * np.asarray(slopes[k][n])
        if first < t <= total - last and (t % every == 0 or t == total - last):
            fraction = 1 - (t - first) / (total - last - first)
            budgets.append(int((6 - 2 * target) * fraction**3 + 2 * target))
            scores = {}
            for k in weights:
                s = {n: mean[k][n] * doubt[k][n] for n in weights[k]}
                for i in range(3):
                    scores[k, i] = s['lambda'][i] + s['p'][:, i].mean() + s['q'][i].mean()
            gone = sorted(scores, key=lambda place: scores[place])[: 6 - budgets[-1]]
        if t > total - last or (first < t and (t % every == 0 or t == total - last)):
            for k, i in gone:
                weights[k]['lambda'][i] = 0
    return weights, budgets


def test_allocation_follows_the_algorithm():
    start = _adalora()
    adapter: Any = start
    budgets = []
    optimizer = peftjax.train.adalora_allocation(
        optax.sgd(0.1), target_rank=1, total_steps=12, initial_steps=2, final_steps=3, every=2
    )
    state = optimizer.init(adapter)
    step = jax.jit(optimizer.update)
    for t in range(1, 13):
        updates, state = step(_slopes(start, t), state, adapter)
        adapter = optax.apply_updates(adapter, updates)
        expected, budgets = _reference(start, t, 12, 2, 3, 2, 1)
        for path, entry in expected.items():
            for name, value in entry.items():
                np.testing.assert_allclose(adapter[path][name], value, atol=1e-5)
                assert ((value == 0) == (np.asarray(adapter[path][name]) == 0)).all()
    assert budgets == [3, 2, 2, 2]
    assert sum(int((entry['lambda'] != 0).sum()) for entry in adapter.values()) == 2


def test_allocation_in_a_chain_leaves_the_rest_to_the_optimizer():
    adapter = (_adalora(), {'out/bias': jnp.ones(3)})
    optimizer = peftjax.train.adalora_allocation(
        optax.sgd(0.5), target_rank=0, total_steps=2, initial_steps=0, final_steps=1
    )
    slopes = jax.tree.map(jnp.ones_like, adapter)
    updates, _ = optimizer.update(slopes, optimizer.init(adapter), adapter)
    after: Any = optax.apply_updates(adapter, updates)
    np.testing.assert_array_equal(after[1]['out/bias'], 0.5)
    assert not after[0]['hidden/kernel']['lambda'].any()
    np.testing.assert_allclose(
        after[0]['hidden/kernel']['p'], adapter[0]['hidden/kernel']['p'] - 0.5, rtol=1e-6
    )


def test_allocation_refuses_what_it_cannot_do():
    make = functools.partial(peftjax.train.adalora_allocation, optax.sgd(0.1), target_rank=1)
    with pytest.raises(ValueError, match='larger total_steps'):
        make(total_steps=5, initial_steps=3, final_steps=2)
    with pytest.raises(ValueError, match='every is at least 1'):
        make(total_steps=5, initial_steps=1, final_steps=1, every=0)
    good = make(total_steps=5, initial_steps=1, final_steps=1)
    with pytest.raises(ValueError, match='larger init_rank'):
        good.init({'out/bias': jnp.zeros(3)})
    adapter = _adalora()
    with pytest.raises(ValueError, match='needs the adapter'):
        good.update(adapter, good.init(adapter))


def _allocating(inner, **options):
    settings = {'target_rank': 1, 'total_steps': 6, 'initial_steps': 1, 'final_steps': 2}
    return peftjax.train.adalora_allocation(inner, **settings, **options)


def test_allocation_is_no_part_of_a_chain():
    allocation = _allocating(optax.scale_by_adam())
    for parts in ((allocation, optax.scale(-0.1)), (optax.clip(1.0), allocation)):
        with pytest.raises(ValueError, match=r'adalora_allocation\(optax.chain\(...\)'):
            optax.chain(*parts)
    _allocating(optax.chain(optax.clip(1.0), optax.sgd(0.1))).init(_adalora())


def _after_six_steps(optimizer, start):
    adapter: Any = start
    state, slopes = optimizer.init(adapter), jax.tree.map(jnp.ones_like, adapter)
    for _ in range(6):
        with jax.numpy_dtype_promotion('standard'):  # optax raises floats to a count of steps.
            updates, state = jax.jit(optimizer.update)(slopes, state, adapter)
        adapter = optax.apply_updates(adapter, updates)
    return [np.asarray(entry['lambda']) for entry in adapter.values()]


def test_an_emptied_triplet_that_comes_back_is_not_passed_over():
    inner = optax.scale_by_adam()
    scaled = optax.named_chain(('allocation', _allocating(inner)), ('rate', optax.scale(-0.1)))
    assert all(np.isnan(each).all() for each in _after_six_steps(scaled, _adalora()))
    inside = _allocating(optax.chain(inner, optax.scale(-0.1)))
    for wrapped in (inside, optax.MultiSteps(inside, 1), peftjax.train.lora_plus(inside)):
        left = _after_six_steps(wrapped, _adalora())
        assert np.isfinite(left).all() and np.count_nonzero(left) == 2


def test_lora_plus_moves_b_faster_by_the_ratio():
    mlp = peftjax.testing.tiny_mlp()
    tx = peftjax.chain(peftjax.dora(rank=2, targets=r'hidden'), peftjax.select(r'out/.*'))
    adapter, _ = tx.init(jax.random.key(0), mlp)
    slopes = jax.tree.map(jnp.ones_like, adapter)
    for rate in (0.25, optax.constant_schedule(0.25)):
        optimizer = peftjax.train.lora_plus(optax.sgd(rate), ratio=8)
        updates, _ = jax.jit(optimizer.update)(slopes, optimizer.init(adapter), adapter)
        entry = updates[0]['hidden/kernel']
        assert {name: float(leaf.ravel()[0]) for name, leaf in entry.items()} == {
            'a': -0.25,
            'b': -2.0,
            'magnitude': -0.25,
        }
        np.testing.assert_array_equal(updates[1]['out/kernel'], -0.25)
    of_a_model = peftjax.Entry('select', {'a': jnp.ones(2), 'b': jnp.ones(2)})
    assert jax.tree.leaves(peftjax.train.lora_plus_labels(of_a_model)) == ['slow', 'slow']
    with pytest.raises(ValueError, match='positive'):
        peftjax.train.lora_plus(optax.sgd(0.1), ratio=0.0)


LENGTHS = ((3, 1, 2), (2, 4, 0))
ANSWERS = np.array([2, 0])


def _choices():
    random = np.random.default_rng(0)
    log_probs = np.log(random.uniform(0.01, 0.99, (2, 3, 4))).astype(np.float32)
    mask = np.arange(4) < np.array(LENGTHS)[..., None]
    return log_probs, mask


def test_length_normalised_loss_is_the_formula():
    log_probs, mask = _choices()
    for exponent in (1.0, 0.5):
        total = 0.0
        for example, lengths, answer in zip(log_probs, LENGTHS, ANSWERS, strict=True):
            scores = {
                c: sum(float(v) for v in example[c, :n]) / n**exponent
                for c, n in enumerate(lengths)
                if n
            }
            total -= scores[answer] - math.log(sum(math.exp(v) for v in scores.values()))
        scored, counted, answers = map(jnp.asarray, (log_probs, mask, ANSWERS))
        found = peftjax.train.length_normalised_loss(scored, counted, answers, exponent)
        np.testing.assert_allclose(found, total / 2, rtol=1e-5)


def test_unlikelihood_loss_is_the_formula():
    log_probs, mask = _choices()
    for margin in (1e-2, 0.0):
        terms = [
            -math.log(1 - math.exp(float(value)) + margin)
            for example, lengths, answer in zip(log_probs, LENGTHS, ANSWERS, strict=True)
            for c, n in enumerate(lengths)
            if c != answer
            for value in example[c, :n]
        ]
        scored, counted, answers = map(jnp.asarray, (log_probs, mask, ANSWERS))
        found = peftjax.train.unlikelihood_loss(scored, counted, answers, margin)
        np.testing.assert_allclose(found, sum(terms) / len(terms), rtol=1e-5)


@pytest.mark.parametrize('value', [0.0, -1e-7, -1e4, -1e30])
@pytest.mark.parametrize(
    'loss', [peftjax.train.length_normalised_loss, peftjax.train.unlikelihood_loss]
)
def test_losses_are_finite_at_extremes(loss, value):
    _, mask = _choices()
    # Padding may hold anything.
    log_probs = jnp.where(mask, value, -jnp.inf)
    found, slopes = jax.value_and_grad(loss)(log_probs, mask, ANSWERS)
    assert np.isfinite(found) and np.isfinite(slopes).all()
    assert not slopes[~mask].any()


def test_without_a_wrong_choice_nothing_is_unlikely():
    log_probs, mask = _choices()
    found, slopes = jax.value_and_grad(peftjax.train.unlikelihood_loss)(
        log_probs[:, :1], mask[:, :1], np.zeros(2, int)
    )
    assert found == 0 and not slopes.any()


@pytest.mark.parametrize('scan', [False, True])
def test_eva_finds_the_directions_of_the_inputs(scan):
    width, layers = 6, 3

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            return x + jnp.sin(nn.Dense(width, name='dense')(x)), None

    class Blocks(nn.Module):
        @nn.compact
        def __call__(self, x):
            if scan:
                axes = {'variable_axes': {'params': 0}, 'split_rngs': {'params': True}}
                return nn.scan(Block, length=layers, **axes)(name='layers')(x)[0]
            for i in range(layers):
                x, _ = Block(name=f'layers_{i}')(x)
            return x

    scales = jnp.arange(1.0, 7.0)[None, None]
    batches = [
        {'x': 2.0 + jax.random.normal(jax.random.key(i), (4, 9, width)) * scales} for i in range(3)
    ]
    model = peftjax.wrap(Blocks(), Blocks().init(jax.random.key(7), batches[0]['x']), batches[0])

    def counted(batch):
        return batch['x'][:, :, 0] > 1.5

    found = peftjax.train.eva(model, batches, targets=r'layers.*', rank=4, counted=counted)

    x = np.concatenate([batch['x'][counted(batch)] for batch in batches]).astype(np.float64)
    for i in range(layers):
        path = 'layers/dense/kernel' if scan else f'layers_{i}/dense/kernel'
        a, shares = found.a[path], found.explained[path]
        dense = model.params['layers' if scan else f'layers_{i}']['dense']
        if scan:
            a, shares = a[i], shares[i]
            dense = jax.tree.map(lambda leaf, i=i: leaf[i], dense)
        _, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
        np.testing.assert_allclose(abs(right[:4] @ np.asarray(a)), np.eye(4), atol=1e-3)
        np.testing.assert_allclose(shares, (values**2 / (values**2).sum())[:4], rtol=1e-4)
        x = x + np.sin(x @ np.asarray(dense['kernel']) + np.asarray(dense['bias']))

    tx = peftjax.lora(rank=4, targets=r'layers.*', init=found.a)
    start, _ = tx.init(jax.random.key(0), model)
    for path, a in found.a.items():
        np.testing.assert_array_equal(start[path]['a'], a)
    if scan:
        with pytest.raises(ValueError, match='stack of.*scan=False'):
            found.ranks(6)
    else:
        ranks = found.ranks(6)
        assert sum(ranks.values()) == 6
        least = min(s for p, r in ranks.items() for s in found.explained[p][:r].tolist())
        most = max(s for p, r in ranks.items() for s in found.explained[p][r:].tolist())
        assert least >= most
        with pytest.raises(ValueError, match='budget is 13 ranks, but eva found 12'):
            found.ranks(13)


def test_eva_refuses_what_has_no_directions():
    mlp = peftjax.testing.tiny_mlp()
    with pytest.raises(ValueError, match='no batches'):
        peftjax.train.eva(mlp, [], targets=r'hidden', rank=2)
    with pytest.raises(ValueError, match="rank 5.*'hidden/kernel', 4"):
        peftjax.train.eva(mlp, [{'x': jnp.ones((2, 4))}], targets=r'hidden', rank=5)
    with pytest.raises(ValueError, match=r"tokens at 'hidden/kernel' have shape \(2,\)"):
        peftjax.train.eva(
            mlp,
            [{'x': jnp.ones((2, 4))}],
            targets=r'hidden',
            rank=2,
            counted=lambda batch: jnp.ones(3),
        )
