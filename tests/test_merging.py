"""Deltas of every method that merges, and the way back to parameters and adapters."""

import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import merging, testing
from tests.contract_models import IDS, MODELS
from tests.deltas import FORM, far, trained
from tests.rows import METHODS

MERGEABLE = [name for name, row in METHODS.items() if row.mergeable]
_FACTORED = {'lora', 'lora_fa', 'adalora', 'vera', 'pissa', 'olora'}


@pytest.mark.sampled
@pytest.mark.parametrize('name', MERGEABLE)
def test_one_adapter_of_weight_one_is_that_adapter(name):
    model, tx, adapter, frozen = trained(name)
    delta = merging.delta(model, tx, adapter, frozen)
    same = merging.weighted_sum([delta], 1.0)
    assert far(merging.apply_delta(model.params, same), tx.merge(adapter, frozen)) < 2e-6
    entries = [each for each in jax.tree.leaves(adapter, is_leaf=_is_entry) if _is_entry(each)]
    low_rank = bool(entries) and {each.method for each in entries} <= _FACTORED
    assert {isinstance(change, merging.Factored) for change in delta.values()} == {low_rank}


def _is_entry(node):
    return isinstance(node, peftjax.Entry)


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
    assert far(model.apply(merged, ids=IDS), chained) < 1e-5
    whole = merging.delta(model, both, adapter, frozen)
    assert {change.rank for change in whole.values() if isinstance(change, merging.Factored)} == {5}
    assert far(merging.dense(whole), merging.dense(merging.weighted_sum(apart, 1.0))) < 1e-6


def test_a_method_without_a_merged_weight_is_refused_by_name():
    model = MODELS[FORM]()
    tx = METHODS['houlsby'].maker(model)(METHODS['houlsby'].targets)
    with pytest.raises(peftjax.MergeError, match='layers/attention'):
        merging.delta(model, tx, *tx.init(jax.random.key(0), model))


@pytest.mark.parametrize('name', ['lora', 'rslora with patterns', 'lora, pissa', 'dora', 'full'])
def test_to_lora_at_full_rank_is_exact(name):
    model, tx, adapter, frozen = trained(name)
    delta = merging.delta(model, tx, adapter, frozen)
    if name == 'full':
        _, delta = merging.split(delta, (r'.*/(bias|scale)', r'embed/.*'))
    found = merging.to_lora(delta, model)
    merged = found.transform.merge(found.adapter, found.frozen)
    assert far(merged, merging.apply_delta(model.params, delta)) < 1e-5
    assert all(float(each.min()) > 1 - 1e-6 for each in found.energy.values())
    low = merging.to_lora(delta, model, rank=1)
    for path, change in delta.items():
        values = np.linalg.svd(np.asarray(change.matrix()), compute_uv=False)
        left = np.asarray(merging.delta(model, *low[:3])[path].matrix() - change.matrix())
        best = np.sqrt((values[..., 1:] ** 2).sum(-1))
        np.testing.assert_allclose(np.linalg.norm(left, axis=(-2, -1)), best, rtol=1e-3, atol=1e-5)


def test_energy_picks_the_least_rank_that_holds_it():
    model, tx, adapter, frozen = trained('lora')
    deltas = [merging.delta(model, tx, testing.perturb(adapter, i, 0.3), frozen) for i in range(3)]
    merged = merging.weighted_sum(deltas, 0.5)
    found = merging.to_lora(merged, model, energy=0.9)
    for path, entry in found.adapter.items():
        assert float(found.energy[path].min()) >= 0.9 - 1e-6
        rank = entry['a'].shape[-1]
        if rank > 1:
            less = merging.to_lora({path: merged[path]}, model, rank=rank - 1)
            assert float(less.energy[path].min()) < 0.9


def test_what_cannot_be_done_right_is_refused_by_name():
    model, tx, adapter, frozen = trained('lora')
    delta = merging.delta(model, tx, adapter, frozen)
    other = merging.delta_of(
        {'embed': {'embedding': jnp.ones((3, 4))}}, {'embed': {'embedding': jnp.zeros((3, 4))}}
    )
    packed = peftjax.quantize(model, 'int8', targets=r'layers.*/up')
    full, wrong = merging.delta_of(model.params, model), typing.cast(typing.Any, delta)
    for act, error, words in [
        (lambda: merging.apply_delta(packed.params, delta), peftjax.MergeError, 'layers/up/kernel'),
        (lambda: merging.apply_delta(model.params, other), ValueError, 'embed/embedding'),
        (lambda: merging.average([]), ValueError, 'empty'),
        (lambda: merging.average(wrong), TypeError, 'write a list'),
        (lambda: merging.average([adapter]), TypeError, 'merging.delta'),
        (lambda: merging.average([delta, delta], [1.0]), ValueError, '2 deltas and weights'),
        (lambda: merging.average([delta, delta], [1.0, -1.0]), ValueError, 'sum to zero'),
        (lambda: merging.greedy_soup([delta], lambda _: math.nan), ValueError, 'is NaN'),
        (lambda: merging.average([full, other]), ValueError, 'keep|stay apart'),
        (lambda: merging.ties([delta], density=0.0), ValueError, 'density is 0.0'),
        (lambda: merging.della([delta], jax.random.key(0), density=0.9), ValueError, 'epsilon=0.1'),
        (lambda: merging.slerp(delta, delta, 0.5, per=wrong), ValueError, "'tensor'"),
        (lambda: merging.to_lora(full, model), ValueError, 'no matrix that LoRA'),
        (lambda: merging.to_lora(delta, model, rank=1, energy=0.5), ValueError, 'exclude'),
        (lambda: merging.to_lora(delta, model, energy=1.5), ValueError, 'energy is 1.5'),
        (lambda: merging.regmean([full], [{}, {}]), ValueError, 'one each'),
        (lambda: merging.delta(model.params, tx, adapter, frozen), TypeError, 'model is a dict'),
        (lambda: merging.split(delta, r'nothing'), peftjax.TargetError, 'matches no leaf'),
    ]:
        with pytest.raises(error, match=words):
            act()


def test_a_quantised_base_gives_factors_and_takes_none():
    model = peftjax.quantize(MODELS[FORM](), 'int8', targets=r'layers.*/(up|down)')
    tx = peftjax.lora(rank=2, targets=r'layers.*/(up|down)')
    adapter, frozen = tx.init(jax.random.key(0), model)
    delta = merging.delta(model, tx, testing.perturb(adapter, 1), frozen)
    found = merging.to_lora(merging.average([delta, delta]), model, rank=2)
    mine = peftjax.adapt(model, tx)(testing.perturb(adapter, 1), frozen, ids=IDS)
    theirs = peftjax.adapt(model, found.transform)(found.adapter, found.frozen, ids=IDS)
    assert far(theirs, mine) < 1e-5


def test_a_base_in_half_precision_is_rounded_once():
    model = MODELS[FORM]()
    low = model.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))
    tx = peftjax.lora(rank=2, targets=METHODS['lora'].targets)
    adapter, frozen = tx.init(jax.random.key(0), low)
    adapter = testing.perturb(adapter, 1)
    merged = merging.apply_delta(low, merging.delta(low, tx, adapter, frozen)).params
    expected = tx.merge(adapter, frozen)
    for found, other in zip(jax.tree.leaves(merged), jax.tree.leaves(expected), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, other)
