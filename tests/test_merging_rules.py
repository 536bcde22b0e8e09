"""The laws that every rule of merging keeps, and TIES against its paper."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import merging
from peftjax.merging.changes import product
from peftjax.train.moments import Moments
from tests.deltas import RULES, SPANNED, far, random_deltas, vector


@pytest.mark.sampled
@pytest.mark.parametrize('name', RULES)
def test_the_order_of_the_inputs_changes_nothing(name):
    deltas = random_deltas(4)
    one, other = RULES[name](deltas), RULES[name]([deltas[i] for i in (2, 0, 3, 1)])
    assert far(merging.dense(one), merging.dense(other)) < 2e-5


ALONE = [name for name in RULES if not name.startswith(('sum', 'ties', 'breadcrumbs', 'core ties'))]


@pytest.mark.parametrize('name', ALONE)
def test_a_rule_of_one_delta_gives_that_delta(name):
    (delta,) = random_deltas(1)
    assert far(merging.dense(RULES[name]([delta])), merging.dense(delta)) < 3e-6


@pytest.mark.parametrize('name', SPANNED)
def test_core_space_is_full_space_for_linear_rules(name):
    # The deltas share a component, as runs of one task do. At a mean cosine near 0, the ratio of
    # Model Stock is near 0 too, and loses more digits than this test allows.
    *own, shared = random_deltas(4, ranks=(1, 1, 1, 1))
    deltas = [merging.weighted_sum([delta, shared], 1.0) for delta in own]
    core, full = merging.core_space(RULES[name])(deltas), RULES[name](deltas)
    assert all(isinstance(change, merging.Factored) for change in core.values())
    assert far(merging.dense(core), merging.dense(full)) < 1e-5


@pytest.mark.sampled
@pytest.mark.parametrize('name', RULES)
def test_a_stack_of_layers_merges_as_its_layers_do(name):
    """Scanned layers are one leaf; a threshold, an angle or a coefficient is still of a matrix."""
    deltas = random_deltas(3)
    whole, single = RULES[name](deltas), RULES[name](_apart(deltas))
    assert far(merging.dense(whole), _stacked(merging.dense(single))) < 1e-5


def _apart(deltas):
    """Each layer as a leaf by itself."""
    return [
        {
            f'{path}/{layer}': _layer(change, layer)
            for path, change in delta.items()
            for layer in range(2)
        }
        for delta in deltas
    ]


def _stacked(arrays):
    names = sorted({path.rsplit('/', 1)[0] for path in arrays})
    return {name: jnp.stack([arrays[f'{name}/{layer}'] for layer in range(2)]) for name in names}


def _fisher(deltas, weights):
    values = [{path: jnp.abs(each) for path, each in merging.dense(d).items()} for d in deltas]
    return merging.fisher(deltas, values, weights=weights, smooth=0.1)


def _regmean(deltas, weights):
    def moments(change):
        x = change.left
        return Moments(product(x, x.mT), x[..., 0], jnp.full(x.shape[:-2], 7.0))

    given = [{path: moments(change) for path, change in delta.items()} for delta in deltas]
    return merging.regmean(deltas, given, weights=weights)


KEY = jax.random.key(0)
WEIGHTED = {
    'average': merging.average,
    'sum': merging.weighted_sum,
    'ties': lambda deltas, weights: merging.ties(deltas, weights=weights, density=0.4),
    'dare': lambda deltas, weights: merging.dare(deltas, KEY, weights=weights, density=1.0),
    'dare, elected': lambda deltas, weights: merging.dare(
        deltas, KEY, weights=weights, density=1.0, elect=True
    ),
    'della': lambda deltas, weights: merging.della(
        deltas, KEY, weights=weights, density=1.0, epsilon=0.0
    ),
    'breadcrumbs': lambda deltas, weights: merging.breadcrumbs(deltas, weights=weights),
    'fisher': _fisher,
    'regmean': _regmean,
    'regmean, no moments': lambda deltas, weights: merging.regmean(
        deltas, [{}] * len(deltas), weights=weights
    ),
    'core ties': lambda deltas, weights: merging.core_space(
        lambda cores: merging.ties(cores, weights=weights, density=0.3)
    )(deltas),
}


@pytest.mark.sampled
@pytest.mark.parametrize('name', WEIGHTED)
def test_layers_of_a_stack_have_weights_of_their_own(name):
    deltas, rule = random_deltas(3), WEIGHTED[name]
    random = np.random.default_rng(5)
    weights = {
        path: jnp.asarray(random.uniform(0.1, 2.0, (2, 3)), jnp.float32) for path in deltas[0]
    }
    by_layer = {
        f'{path}/{layer}': each[layer] for path, each in weights.items() for layer in range(2)
    }
    whole = merging.dense(rule(deltas, weights))
    assert far(whole, _stacked(merging.dense(rule(_apart(deltas), by_layer)))) < 1e-4
    alike = {path: each[:1].repeat(2, 0) for path, each in weights.items()}
    assert far(whole, merging.dense(rule(deltas, alike))) > 1e-2
    traced = jax.jit(lambda given: merging.dense(rule(deltas, given)))(weights)
    assert far(traced, whole) < 1e-4
    with pytest.raises(ValueError, match=r'weights of shape \(3, 3\).*shape \(2, 3\)'):
        rule(deltas, {path: jnp.ones((3, 3)) for path in weights})


SHARED = ('average', 'fisher', 'regmean', 'regmean, no moments')


@pytest.mark.parametrize('make', [list, np.asarray, jnp.asarray])
@pytest.mark.parametrize('name', SHARED)
def test_a_mean_whose_weights_sum_to_zero_is_refused(name, make):
    deltas, rule = random_deltas(3), WEIGHTED[name]
    for weights in ([1.0, -1.0, 0.0], [0.1, 0.2, -0.3], [1.0, math.nan, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match='sum to zero, or to no number'):
            rule(deltas, make(weights))
    by_layer = {path: make([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]]) for path in deltas[0]}
    with pytest.raises(ValueError, match="at 'layers/.*' sum to zero"):
        rule(deltas, by_layer)
    with pytest.raises(ValueError, match='sum to zero'):
        rule(deltas, jnp.float32(0.0))
    with pytest.raises(ValueError, match='sum to zero'):
        merging.karcher_mean(deltas, make([1.0, -1.0, 0.0]))


def _layer(change, layer):
    layout = dataclasses.replace(
        change.layout, shape=change.layout.shape[1:], stack=(), rows=(0,), columns=(1,)
    )
    return merging.Factored(change.left[layer], change.right[layer], layout)


@pytest.mark.sampled
@pytest.mark.parametrize('name', [*RULES, 'dare', 'della'])
def test_rules_are_pure_compiled_and_differentiable(name):
    key = jax.random.key(3)
    drawn = {
        'dare': lambda deltas: merging.dare(deltas, key, density=0.6),
        'della': lambda deltas: merging.della(deltas, key, density=0.6),
    }
    rule, deltas = (RULES | drawn)[name], random_deltas(3)
    eager = merging.dense(rule(deltas))
    assert far(jax.jit(lambda given: merging.dense(rule(given)))(deltas), eager) < 1e-5

    def size(given):
        return sum(jnp.square(each).sum() for each in merging.dense(rule(given)).values())

    slopes = jax.tree.leaves(jax.grad(size)(deltas))
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)
    assert any(bool(jnp.any(slope != 0)) for slope in slopes)


def _reference_ties(vectors, density, scale, weights):
    """The formula of the paper, on whole vectors, in numpy."""
    trimmed = []
    for each in vectors:
        keep = np.argsort(-np.abs(each), kind='stable')[: round(density * each.size)]
        thin = np.zeros_like(each)
        thin[keep] = each[keep]
        trimmed.append(thin)
    trimmed = np.stack(trimmed)
    mass = (weights[:, None] * trimmed).sum(0)
    sign = np.sign(mass)
    sign[sign == 0] = np.sign(sign.sum())
    agrees = np.sign(trimmed) == sign
    total = (weights[:, None] * trimmed * agrees).sum(0)
    return scale * total / np.maximum((weights[:, None] * agrees * (trimmed != 0)).sum(0), 1e-12)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    st.integers(0, 10**6), st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.integers(1, 4), st.booleans()
)
def test_ties_is_the_formula_of_its_paper(seed, density, count, weighted):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, 60)).astype(np.float32)
    weights = random.uniform(0.1, 1.0, count).astype(np.float32) if weighted else np.ones(count)
    base = {'a': jnp.zeros((5, 6)), 'b': jnp.zeros(30)}
    deltas = [
        merging.delta_of({'a': jnp.asarray(v[:30]).reshape(5, 6), 'b': jnp.asarray(v[30:])}, base)
        for v in vectors
    ]
    merged = merging.ties(
        deltas, density=density, scale=0.7, weights=list(weights) if weighted else None
    )
    found = np.concatenate([np.asarray(each).ravel() for each in merging.dense(merged).values()])
    expected = _reference_ties(vectors.astype(np.float64), density, 0.7, weights.astype(float))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ties_elects_on_weighted_deltas_and_divides_by_their_weights():
    """The example in which peft gives 0.1: it elects without weights, and divides by a count."""
    first, second = (vector([each]) for each in (1.0, -0.9))
    merged = merging.ties([first, second], density=1.0, weights=[0.1, 1.0])
    np.testing.assert_allclose(merged['w'].matrix(), [[-0.9]], rtol=1e-6)
    alike = merging.ties([vector([2.0]), vector([4.0])], density=1.0, weights=[0.5, 0.5])
    np.testing.assert_allclose(alike['w'].matrix(), [[3.0]], rtol=1e-6)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(st.integers(0, 10**6), st.floats(0.01, 1.0))
def test_trimming_keeps_the_largest(seed, density):
    values = np.random.default_rng(seed).normal(size=37).astype(np.float32)
    delta = merging.delta_of({'w': jnp.asarray(values)}, {'w': jnp.zeros(37)})
    left = np.asarray(merging.trimmed(delta, density)['w'].matrix())[0]
    count = max(1, round(density * 37))
    assert (left != 0).sum() == count
    assert set(np.flatnonzero(left)) == set(np.argsort(-np.abs(values))[:count])
