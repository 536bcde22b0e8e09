"""Rules of merging against formulas by hand, and those that look at data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peftjax import merging
from peftjax.core.layout import Layout
from peftjax.train.moments import Moments
from tests.contract_models import IDS, MODELS
from tests.deltas import FORM, far, random_deltas, vector


def _moments(squares, rows):
    return Moments(squares, jnp.zeros(squares.shape[:-1]), rows)


def test_fisher_merging_is_the_average_of_weights_by_information():
    model = MODELS[FORM]()
    random = np.random.default_rng(0)
    tuned = [
        jax.tree.map(lambda w: w + jnp.asarray(random.normal(size=w.shape), w.dtype), model.params)
        for _ in range(3)
    ]
    values = [
        jax.tree.map(lambda w: jnp.asarray(random.uniform(0.1, 1, w.shape), w.dtype), model.params)
        for _ in range(3)
    ]
    deltas = [merging.delta_of(each, model) for each in tuned]
    merged = merging.apply_delta(model.params, merging.fisher(deltas, values))
    expected = jax.tree.map(
        lambda a, b, c, f, g, h: (f * a + g * b + h * c) / (f + g + h), *tuned, *values
    )
    assert far(merged, expected) < 1e-5
    with pytest.raises(ValueError, match='values has nothing for'):
        merging.fisher(deltas, [{}, {}, {}])


@pytest.mark.parametrize('full', [False, True])
def test_regmean_is_least_squares_on_the_inputs_of_each_model(full):
    """Against numpy's own solution of the stacked problem, matrix by matrix."""
    deltas = random_deltas(3)
    random = np.random.default_rng(1)
    inputs = [
        {path: random.normal(size=(2, 30, each.layout.inputs)) for path, each in delta.items()}
        for delta in deltas
    ]
    moments = [
        {
            path: _moments(jnp.asarray(np.swapaxes(x, 1, 2) @ x, jnp.float32), jnp.full(2, 30.0))
            for path, x in each.items()
        }
        for each in inputs
    ]
    if full:
        deltas = [
            {path: merging.Full(each.matrix(), each.layout) for path, each in delta.items()}
            for delta in deltas
        ]
    merged = merging.regmean(deltas, moments, off_diagonal=1.0)
    assert all(isinstance(change, merging.Full) == full for change in merged.values())
    for path, change in merged.items():
        for layer in range(2):
            x = np.concatenate([each[path][layer] for each in inputs])
            parts = [
                e[path][layer] @ d[path].matrix()[layer]
                for e, d in zip(inputs, deltas, strict=True)
            ]
            expected = np.linalg.lstsq(x, np.concatenate(parts), rcond=None)[0]
            np.testing.assert_allclose(change.matrix()[layer], expected, atol=1e-4)
    single = merging.regmean(deltas[:1], moments[:1])
    assert far(merging.dense(single), merging.dense(deltas[0])) < 1e-5


def test_adamerging_lowers_the_entropy_by_layer_and_by_task():
    deltas = random_deltas(2)
    model = MODELS[FORM]()

    def logits(params, ids):
        return model.apply(params, ids=ids)

    def certain(weights):
        merged = merging.apply_delta(model.params, merging.weighted_sum(deltas, weights))
        return float(merging.entropy(logits(merged, IDS)))

    for per in ('tensor', 'model'):
        found = merging.adamerging(
            logits, model.params, deltas, [IDS] * 20, per=per, optimizer=optax.adam(0.05)
        )
        shapes = {tuple(each.shape) for each in jax.tree.leaves(found)}
        assert shapes == ({(2, 2)} if per == 'tensor' else {(2,)})
        assert certain(found) < certain(0.3) - 1e-4


def test_a_greedy_soup_takes_what_helps_in_any_order():
    deltas = random_deltas(4)
    goal = merging.dense(merging.average([deltas[1], deltas[3]]))
    score = lambda delta: -far(merging.dense(merging.average([delta])), goal)  # noqa: E731
    soup = merging.greedy_soup(deltas, score)
    again = merging.greedy_soup(deltas[::-1], score)
    assert {3 - i for i in again.chosen} == set(soup.chosen) and again.score == soup.score
    assert soup.score >= max(score(each) for each in deltas)


@pytest.mark.parametrize('ill', [1, 2, 3])
def test_a_greedy_soup_refuses_a_score_that_is_no_number(ill):
    """The third score is of a mean: it must not count as a mean that does harm."""
    calls = []

    def score(delta):
        calls.append(delta)
        return math.nan if len(calls) == ill else 1.0

    what = {1: 'delta 0', 2: 'delta 1', 3: r'the mean of the deltas \[0, 1\]'}[ill]
    with pytest.raises(ValueError, match=f'the score of {what} is NaN'):
        merging.greedy_soup(random_deltas(2), score)


def test_slerp_and_model_stock_by_hand():
    first, second = (vector(each) for each in ([2.0, 0.0], [0.0, 1.0]))
    half = merging.slerp(first, second, 0.25)['w'].matrix()[0]
    np.testing.assert_allclose(half, [2 * np.sin(0.375 * np.pi), np.sin(0.125 * np.pi)], rtol=1e-6)
    np.testing.assert_allclose(
        merging.slerp(first, second, 1.0)['w'].matrix(), [[0.0, 1.0]], atol=1e-6
    )
    linear = merging.slerp(first, vector([4.0, 0.0]), 0.25)['w'].matrix()
    np.testing.assert_allclose(linear, [[2.5, 0.0]], rtol=1e-6)
    stock = merging.model_stock([vector([1.0, 0.0]), vector([0.0, 1.0])])['w'].matrix()
    np.testing.assert_allclose(stock, [[0.0, 0.0]], atol=1e-6)


def test_the_mean_direction_minimises_squared_angles():
    random = np.random.default_rng(4)
    units = [v / np.linalg.norm(v) for v in random.normal(size=(3, 5)) + 1.0]
    weights = np.asarray([0.2, 0.3, 0.5])
    mean = np.asarray(
        merging.karcher_mean([vector(list(u)) for u in units], list(weights))['w'].matrix()
    )[0]
    np.testing.assert_allclose(np.linalg.norm(mean), 1.0, rtol=1e-5)

    def spread(point):
        cosines = [float(point @ unit) / np.linalg.norm(point) for unit in units]
        return sum(
            w * np.arccos(np.clip(c, -1, 1)) ** 2 for w, c in zip(weights, cosines, strict=True)
        )

    for _ in range(20):
        assert spread(mean) <= spread(mean + 1e-2 * random.normal(size=5)) + 1e-6


def test_drawn_rules_keep_the_mean_and_repeat_with_their_key():
    delta = merging.delta_of({'w': jnp.ones((200, 200))}, {'w': jnp.zeros((200, 200))})
    key = jax.random.key(0)
    for rule, density in ((merging.dare, 0.3), (merging.della, 0.5)):
        one = rule(
            [delta], key, density=density, **({'elect': False} if rule is merging.della else {})
        )
        again = rule(
            [delta], key, density=density, **({'elect': False} if rule is merging.della else {})
        )
        values = np.asarray(one['w'].matrix())
        np.testing.assert_array_equal(values, again['w'].matrix())
        assert abs(values.mean() - 1) < 0.03 and abs((values != 0).mean() - density) < 0.02


def test_della_keeps_by_rank_among_the_inputs_of_an_output():
    """Columns of the same five magnitudes, shuffled: how often each of them stays."""
    random = np.random.default_rng(0)
    magnitudes = np.asarray([1.0, 2.0, 3.0, 4.0, 5.0], np.float32)
    columns = np.stack([random.permutation(magnitudes) for _ in range(20000)], 1)
    layout = Layout(columns.shape, (), (0,), (1,))
    delta = {'w': merging.Full(jnp.asarray(columns), layout)}
    thin = merging.della([delta], jax.random.key(0), density=0.6, epsilon=0.2, elect=False)
    values = np.asarray(thin['w'].matrix())
    expected = [0.4, 0.5, 0.6, 0.7, 0.8]
    for magnitude, probability in zip(magnitudes, expected, strict=True):
        stayed = values[columns == magnitude]
        assert abs((stayed != 0).mean() - probability) < 0.015
        np.testing.assert_allclose(stayed[stayed != 0], magnitude / probability, rtol=1e-5)


@pytest.mark.parametrize('shape', [(20000, 1, 1), (1, 1)])
def test_della_keeps_a_lone_entry_with_its_density(shape):
    """A scale or a bias of one number, of each layer, has no rank among others."""
    layout = Layout(shape, tuple(range(len(shape) - 2)), (len(shape) - 2,), (len(shape) - 1,))
    delta = {'w': merging.Full(jnp.ones(shape), layout)}
    keys = jax.random.split(jax.random.key(0), 1 if len(shape) == 3 else 2000)
    thin = jax.vmap(
        lambda key: merging.della([delta], key, density=0.5, epsilon=0.4, elect=False)['w'].matrix()
    )(keys)
    values = np.asarray(thin)
    assert abs((values != 0).mean() - 0.5) < 0.04
    np.testing.assert_allclose(values[values != 0], 2.0)


def test_breadcrumbs_keep_the_middle_of_each_matrix():
    random = np.random.default_rng(2)
    large, small = random.normal(size=(20, 30)), random.normal(size=7)
    base = {'large': jnp.zeros((20, 30)), 'small': jnp.zeros(7)}
    delta = merging.delta_of({'large': jnp.asarray(large), 'small': jnp.asarray(small)}, base)
    merged = merging.dense(merging.breadcrumbs([delta], density=0.5, gamma=0.02))
    order = np.argsort(-np.abs(large).ravel())
    expected = np.zeros(600)
    expected[order[12:312]] = large.ravel()[order[12:312]]
    np.testing.assert_allclose(np.asarray(merged['large']).ravel(), expected, rtol=1e-6)
    # Seven entries: mergekit gives zeros. None of the largest goes, and four stay.
    assert set(np.flatnonzero(merged['small'])) == set(np.argsort(-np.abs(small))[:4])
    alike = merging.breadcrumbs([vector([1.0, -1.0, 1.0, 1.0])], density=0.5, gamma=0.25)
    np.testing.assert_array_equal(alike['w'].matrix(), [[1.0, -1.0, 1.0, 1.0]])


@pytest.mark.parametrize('density', [0.3, 1.0])
def test_sce_is_its_formula(density):
    random = np.random.default_rng(3)
    stacked = random.normal(size=(3, 8, 9))
    deltas = [
        {'w': merging.Full(jnp.asarray(each, jnp.float32), Layout((8, 9), (), (0,), (1,)))}
        for each in stacked
    ]
    variance = stacked.var(0)
    least = np.sort(variance.ravel())[-round(density * 72)]
    chosen = np.where(variance >= least, stacked, 0.0)
    weights = (chosen**2).sum((1, 2))
    agrees = np.sign(chosen) == np.where(chosen.sum(0) >= 0, 1, -1)
    shares = weights[:, None, None] * agrees
    expected = (shares * chosen).sum(0) / np.where(shares.sum(0) == 0, 1, shares.sum(0))
    found = merging.sce(deltas, density=density)['w'].matrix()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_differ_by_leaf_and_by_layer():
    deltas = random_deltas(2)
    paths = sorted(deltas[0])
    weights = {paths[0]: [0.3, 0.7], paths[1]: jnp.asarray([[1.0, 0.0], [0.0, 2.0]])}
    merged = merging.dense(merging.weighted_sum(deltas, weights))
    first, second = (merging.dense(each) for each in deltas)
    assert far(merged[paths[0]], 0.3 * first[paths[0]] + 0.7 * second[paths[0]]) < 1e-6
    expected = jnp.stack([first[paths[1]][0], 2.0 * second[paths[1]][1]])
    assert far(merged[paths[1]], expected) < 1e-6
    with pytest.raises(ValueError, match='weights has nothing for'):
        merging.weighted_sum(deltas, {paths[0]: [0.5, 0.5]})
