"""Deltas of every method that merges, the laws of the rules, and the way back to adapters."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import merging, testing
from tests.contract_models import IDS, MODELS
from tests.rows import METHODS

MERGEABLE = [name for name, row in METHODS.items() if row.mergeable]
FORM = 'linen scanned'
_FACTORED = {'lora', 'lora_fa', 'adalora', 'vera', 'pissa', 'olora'}


def _trained(name, seed=0, form=FORM):
    row, model = METHODS[name], MODELS[form]()
    tx = row.maker(model)(row.targets)
    adapter, frozen = tx.init(jax.random.key(seed), model)
    frozen = frozen._replace(params=peftjax.dequantize(frozen.params))  # Of LoftQ alone.
    return model, tx, testing.perturb(adapter, seed + 1), frozen


def _far(first, second):
    """The largest difference of two trees, relative to the largest number of the second."""
    pairs = list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    size = max(float(jnp.abs(b).max()) for _, b in pairs)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs) / max(size, 1e-30)


@pytest.mark.parametrize('name', MERGEABLE)
def test_one_adapter_of_weight_one_is_that_adapter(name):
    model, tx, adapter, frozen = _trained(name)
    delta = merging.delta(model, tx, adapter, frozen)
    same = merging.weighted_sum([delta], 1.0)
    assert _far(merging.apply_delta(model.params, same), tx.merge(adapter, frozen)) < 2e-6
    for rule in (merging.average, merging.karcher_mean, merging.model_stock, merging.sce):
        assert _far(merging.dense(rule([delta])), merging.dense(delta)) < 3e-6


def _random_deltas(count, seed=0, ranks=(2, 3, 1, 2)):
    model = MODELS[FORM]()
    deltas = []
    for i in range(count):
        tx = peftjax.lora(rank=ranks[i], alpha=3.0, targets=r'layers.*/(up|down)')
        adapter, frozen = tx.init(jax.random.key(i), model)
        deltas.append(merging.delta(model, tx, testing.perturb(adapter, seed + 7 * i, 0.3), frozen))
    return deltas


RULES = {
    'average': merging.average,
    'sum': lambda deltas: merging.weighted_sum(deltas, 0.4),
    'ties': lambda deltas: merging.ties(deltas, density=0.4),
    'ties, each tensor': lambda deltas: merging.ties(deltas, density=0.4, trim='tensor'),
    'breadcrumbs': lambda deltas: merging.breadcrumbs(deltas, density=0.5, gamma=0.1),
    'breadcrumbs, elected': lambda deltas: merging.breadcrumbs(deltas, density=0.5, elect=True),
    'multi_slerp': merging.multi_slerp,
    'karcher': merging.karcher_mean,
    'karcher, model': lambda deltas: merging.karcher_mean(deltas, per='model'),
    'model_stock': merging.model_stock,
    'sce': lambda deltas: merging.sce(deltas, density=0.5),
    'core average': merging.core_space(merging.average),
    'core ties': merging.core_space(lambda cores: merging.ties(cores, density=0.3)),
}
SPANNED = ('average', 'sum', 'multi_slerp', 'karcher', 'karcher, model', 'model_stock')


@pytest.mark.parametrize('name', RULES)
def test_the_order_of_the_inputs_changes_nothing(name):
    deltas = _random_deltas(4)
    one, other = RULES[name](deltas), RULES[name]([deltas[i] for i in (2, 0, 3, 1)])
    assert _far(merging.dense(one), merging.dense(other)) < 2e-5


@pytest.mark.parametrize('name', SPANNED)
def test_core_space_is_full_space_for_linear_rules(name):
    deltas = _random_deltas(3)
    core, full = merging.core_space(RULES[name])(deltas), RULES[name](deltas)
    assert all(isinstance(change, merging.Factored) for change in core.values())
    assert _far(merging.dense(core), merging.dense(full)) < 1e-5


@pytest.mark.parametrize('name', RULES)
def test_a_stack_of_layers_merges_as_its_layers_do(name):
    """Scanned layers are one leaf; a threshold, an angle or a coefficient is still of a matrix."""
    deltas = _random_deltas(3)
    apart = [
        {
            f'{path}/{layer}': _layer(change, layer)
            for path, change in delta.items()
            for layer in range(2)
        }
        for delta in deltas
    ]
    whole, single = merging.dense(RULES[name](deltas)), merging.dense(RULES[name](apart))
    for path, array in whole.items():
        each = jnp.stack([single[f'{path}/{layer}'] for layer in range(2)])
        assert _far(array, each) < 1e-5


def _layer(change, layer):
    layout = dataclasses.replace(
        change.layout, shape=change.layout.shape[1:], stack=(), rows=(0,), columns=(1,)
    )
    return merging.Factored(change.left[layer], change.right[layer], layout)


@pytest.mark.parametrize('name', [*RULES, 'dare', 'della'])
def test_rules_are_pure_compiled_and_differentiable(name):
    key = jax.random.key(3)
    drawn = {
        'dare': lambda deltas: merging.dare(deltas, key, density=0.6),
        'della': lambda deltas: merging.della(deltas, key, density=0.6),
    }
    rule, deltas = (RULES | drawn)[name], _random_deltas(3)
    eager = merging.dense(rule(deltas))
    assert _far(jax.jit(lambda given: merging.dense(rule(given)))(deltas), eager) < 1e-5

    def size(given):
        return sum(jnp.square(each).sum() for each in merging.dense(rule(given)).values())

    slopes = jax.tree.leaves(jax.grad(size)(deltas))
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)
    assert any(bool(jnp.any(slope != 0)) for slope in slopes)


def _reference_ties(vectors, density, scale, weights):
    """The formula of the paper, on whole vectors, in numpy."""
    trimmed = []
    for vector in vectors:
        keep = np.argsort(-np.abs(vector), kind='stable')[: round(density * vector.size)]
        thin = np.zeros_like(vector)
        thin[keep] = vector[keep]
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


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(st.integers(0, 10**6), st.floats(0.01, 1.0))
def test_trimming_keeps_the_largest(seed, density):
    values = np.random.default_rng(seed).normal(size=37).astype(np.float32)
    delta = merging.delta_of({'w': jnp.asarray(values)}, {'w': jnp.zeros(37)})
    left = np.asarray(merging.trimmed(delta, density)['w'].values)[0]
    count = max(1, round(density * 37))
    assert (left != 0).sum() == count
    assert set(np.flatnonzero(left)) == set(np.argsort(-np.abs(values))[:count])


def test_two_loras_in_a_chain_are_their_sum():
    model = MODELS[FORM]()
    make = lambda rank: peftjax.lora(rank=rank, alpha=5.0, targets=METHODS['lora'].targets)  # noqa: E731
    both = peftjax.chain(make(2), make(3))
    adapter, frozen = both.init(jax.random.key(0), model)
    adapter = testing.perturb(adapter, 1, 0.2)
    apart = [
        merging.delta(model, make(rank), adapter[i], frozen._replace(own=frozen.own[i]))
        for i, rank in enumerate((2, 3))
    ]
    merged = merging.apply_delta(model.params, merging.weighted_sum(apart, 1.0))
    chained = peftjax.adapt(model, both)(adapter, frozen, ids=IDS)
    assert _far(model.apply(merged, ids=IDS), chained) < 1e-5
    whole = merging.delta(model, both, adapter, frozen)
    assert all(change.rank == 5 for change in whole.values())
    assert _far(merging.dense(whole), merging.dense(merging.weighted_sum(apart, 1.0))) < 1e-6


@pytest.mark.parametrize('name', MERGEABLE)
def test_low_rank_methods_give_factors(name):
    model, tx, adapter, frozen = _trained(name)
    methods = {
        each.method for each in jax.tree.leaves(adapter, is_leaf=_is_entry) if _is_entry(each)
    }
    delta = merging.delta(model, tx, adapter, frozen)
    for change in delta.values():
        assert isinstance(change, merging.Factored) == (bool(methods) and methods <= _FACTORED)


def _is_entry(node):
    return isinstance(node, peftjax.Entry)


def test_a_method_without_a_merged_weight_is_refused_by_name():
    model = MODELS[FORM]()
    tx = METHODS['houlsby'].maker(model)(METHODS['houlsby'].targets)
    with pytest.raises(peftjax.MergeError, match='layers/attention'):
        merging.delta(model, tx, *tx.init(jax.random.key(0), model))
