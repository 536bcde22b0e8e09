"""Mixtures of LoRAs keep the contract of methods, and compute their formula."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import merging, testing
from tests.contract_models import HIDDEN, IDS, LAYERS, MODELS, WIDTH
from tests.deltas import far
from tests.oracle.cases import GOLDEN, load_base

TARGETS = r'layers.*/(up|down)'
ONE = r'layers.*/up'
COUNT = 3


def _deltas(model, targets=TARGETS):
    deltas = []
    for i in range(COUNT):
        tx = peftjax.lora(rank=1 + i, targets=targets)
        adapter, frozen = tx.init(jax.random.key(i), model)
        deltas.append(merging.delta(model, tx, testing.perturb(adapter, i, 0.3), frozen))
    return deltas


@pytest.mark.sampled
@pytest.mark.parametrize('form', ['linen scanned', 'nnx looped'])
@pytest.mark.parametrize('top', [None, 2])
def test_x_lora_keeps_the_laws_of_methods(form, top):
    model = MODELS[form]()
    deltas = _deltas(model)
    case = testing.Case(
        make=lambda targets: merging.x_lora(deltas, top=top, targets=targets),
        targets=TARGETS,
        model=model,
        inputs={'ids': IDS},
        fewer_targets=ONE,
        identity=None,
        mergeable=False,
        parameters=LAYERS * COUNT * (WIDTH + HIDDEN + 2),
    )
    testing.check(case)


def _mlp_deltas():
    mlp = testing.tiny_mlp()
    return mlp, _deltas(mlp, r'hidden|out')


def test_arrow_is_its_formula():
    mlp, deltas = _mlp_deltas()
    tx = merging.arrow(deltas, top=2, temperature=0.5)
    adapter, frozen = tx.init(jax.random.key(0), mlp)
    assert not jax.tree.leaves(adapter)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)), jnp.float32)

    def layer(x, path, bias):
        matrices = [np.asarray(delta[path].matrix()) for delta in deltas]
        scores = np.stack([np.abs(x @ np.linalg.svd(m)[0][:, 0]) for m in matrices], -1) / 0.5
        scores[scores < np.sort(scores, -1)[:, -2:-1]] = -np.inf
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        name = path.split('/')[0]
        y = x @ np.asarray(mlp.params[name]['kernel']) + np.asarray(mlp.params[name][bias])
        return y + sum(shares[:, i : i + 1] * (x @ m) for i, m in enumerate(matrices))

    expected = layer(
        np.maximum(layer(np.asarray(x), 'hidden/kernel', 'bias'), 0), 'out/kernel', 'bias'
    )
    found = jax.jit(peftjax.adapt(mlp, tx))(adapter, frozen, x=x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def _lora_delta(model, targets, seed):
    tx = peftjax.lora(rank=2, targets=targets)
    adapter, frozen = tx.init(jax.random.key(seed), model)
    return merging.delta(model, tx, testing.perturb(adapter, seed, 0.5), frozen)


@pytest.mark.parametrize('top', [None, 1, 2])
def test_an_adapter_that_leaves_a_leaf_out_takes_no_share_there(top):
    mlp, x = testing.tiny_mlp(), jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)))
    x = x.astype(jnp.float32)

    def mixed(deltas, top):
        tx = merging.arrow(deltas, top=top)
        return peftjax.adapt(mlp, tx)(*tx.init(jax.random.key(0), mlp), x=x)

    first, second = _lora_delta(mlp, r'hidden', 1), _lora_delta(mlp, r'out', 2)
    both = merging.apply_delta(mlp.params, merging.weighted_sum([first, second], 1.0))
    assert far(mixed([first, second], top), mlp.apply(both, x)) < 1e-5
    hidden = [first, _lora_delta(mlp, r'hidden', 3)]
    head = merging.apply_delta(mlp.params, second)
    tx = merging.arrow(hidden, top=top)
    adapter, frozen = tx.init(jax.random.key(0), mlp)
    params = {**frozen.params, 'out': head['out']}
    expected = peftjax.adapt(mlp, tx)(adapter, frozen._replace(params=params), x=x)
    assert far(mixed([*hidden, second], top), expected) < 1e-5


@pytest.mark.parametrize('silent', [((0,), (1,)), ((0, 1), (1,))])
def test_a_change_of_zero_in_one_layer_takes_no_share_there(silent):
    """Each layer is left with at most one adapter, so that the mixture is the sum."""
    model, deltas = MODELS['linen scanned'](), []
    for seed, layers in enumerate(silent):
        delta = _lora_delta(model, TARGETS, seed + 1)
        keep = jnp.asarray([layer not in layers for layer in range(LAYERS)], jnp.float32)
        deltas.append({path: change.scaled(keep) for path, change in delta.items()})
    tx = merging.arrow(deltas)
    found = peftjax.adapt(model, tx)(*tx.init(jax.random.key(0), model), ids=IDS)
    merged = merging.apply_delta(model.params, merging.weighted_sum(deltas, 1.0))
    assert far(found, model.apply(merged, ids=IDS)) < 1e-5


def test_the_mask_of_a_mixture_is_saved(tmp_path):
    mlp = testing.tiny_mlp()
    tx = merging.arrow([_lora_delta(mlp, r'hidden', 1), _lora_delta(mlp, r'out', 2)])
    adapter, frozen = tx.init(jax.random.key(0), mlp)
    peftjax.save(tmp_path / 'mixture', mlp, tx, adapter, frozen)
    restored = peftjax.restore(tmp_path / 'mixture', mlp, transform=tx)
    predict, x = peftjax.adapt(mlp, tx), jnp.ones((3, 4))
    found = predict(restored.adapter, restored.frozen, x=x)
    np.testing.assert_array_equal(found, predict(adapter, frozen, x=x))


def test_fresh_gates_are_the_mean_of_the_adapters():
    mlp, deltas = _mlp_deltas()
    tx = merging.x_lora(deltas)
    x = jnp.ones((5, 4))
    mixed = peftjax.adapt(mlp, tx)(*tx.init(jax.random.key(0), mlp), x=x)
    mean = merging.apply_delta(mlp.params, merging.average(deltas))
    assert far(mixed, mlp.apply(mean, x)) < 1e-5


def test_a_mixture_refuses_by_name():
    mlp, deltas = _mlp_deltas()
    full = merging.delta_of(mlp.params, mlp)
    for act, error, words in [
        (lambda: merging.arrow([full]), ValueError, 'is full, but a mixture takes factors'),
        (lambda: merging.arrow(deltas, top=4), ValueError, 'from 1 to 3'),
        (lambda: merging.arrow(deltas, temperature=0.0), ValueError, 'temperature is 0.0'),
    ]:
        with pytest.raises(error, match=words):
            act()
    tx = merging.arrow(deltas)
    with pytest.raises(peftjax.MergeError, match='hidden/kernel'):
        tx.merge(*tx.init(jax.random.key(0), mlp))
    few = merging.arrow(
        [merging.split(each, r'out/kernel')[0] for each in deltas], targets=r'hidden'
    )
    with pytest.raises(peftjax.TargetError, match="no delta changes 'hidden/kernel'"):
        few.init(jax.random.key(0), mlp)


@pytest.mark.parametrize('form', ['linen scanned', 'nnx looped'])
def test_adapter_fusion_keeps_the_laws_of_methods(form):
    model = MODELS[form]()
    members = []
    for size in (2, 3):
        tx = peftjax.bottleneck(size=size, targets=r'layers.*/(attention|down)')
        adapter, frozen = tx.init(jax.random.key(size), model)
        members.append((tx, testing.perturb(adapter, size, 0.3), frozen))
    case = testing.Case(
        make=lambda _: merging.adapter_fusion(members),
        targets=r'.*',
        model=model,
        inputs={'ids': IDS},
        identity=None,
        mergeable=False,
        parameters=LAYERS * 2 * 3 * WIDTH**2,
    )
    # It has no targets of its own, and its matrices are of the shape of some kernels.
    for law in testing.LAWS.values():
        if law not in (testing.wrong_target_raises, testing.dense_only_if_said):
            law(case)


def test_fusion_starts_near_the_mean_of_what_the_adapters_add():
    mlp = testing.tiny_mlp()
    tx = peftjax.bottleneck(size=3, targets=r'out')
    members = []
    for i in range(2):
        adapter, frozen = tx.init(jax.random.key(i), mlp)
        members.append((tx, testing.perturb(adapter, i, 0.5), frozen))
    fused = merging.adapter_fusion(members)
    x = jnp.ones((5, 4))
    adapter, frozen = fused.init(jax.random.key(3), mlp)
    found = peftjax.adapt(mlp, fused)(adapter, frozen, x=x)
    mean = sum(peftjax.adapt(mlp, tx)(*each[1:], x=x) for each in members) / 2
    assert far(found, mean) < 2e-2
    adapter['out'] = adapter['out'].replace(query=jnp.zeros((3, 3)))
    assert far(peftjax.adapt(mlp, fused)(adapter, frozen, x=x), mean) < 1e-6
    lora = peftjax.lora(rank=2, targets=r'out')
    weights = merging.adapter_fusion([(lora, *lora.init(jax.random.key(0), mlp))])
    with pytest.raises(ValueError, match='adapter_fusion takes methods on modules'):
        weights.init(jax.random.key(0), mlp)


def test_fusion_takes_what_the_readers_of_files_return(tmp_path):
    """`load_adapter` has a fourth field, of a config."""
    model = load_base(GOLDEN / 'llama/base', None, True)
    loaded = peftjax.load_adapter(GOLDEN / 'adapters/llama/seq_bn', model)
    peftjax.save(tmp_path / 'again', model, *loaded[:3])
    restored = peftjax.restore(tmp_path / 'again', model)
    found = []
    for members in ([loaded, restored], [loaded[:3], loaded[:3]]):
        fused = merging.adapter_fusion(members)
        adapter, frozen = fused.init(jax.random.key(0), model)
        assert adapter
        found.append(peftjax.adapt(model, fused)(adapter, frozen, input_ids=jnp.ones((1, 5), int)))
    assert far(*found) < 1e-6


@pytest.mark.parametrize('take', ['fusion', 'bank', 'put'])
def test_what_is_no_member_is_refused_by_name(take):
    mlp = testing.tiny_mlp()
    tx = peftjax.lora(rank=2, targets=r'out')
    adapter, frozen = tx.init(jax.random.key(0), mlp)
    bank, beside = peftjax.serving.bank(mlp, [(tx, adapter, frozen, 'more')], slots=3)
    act = {
        'fusion': lambda member: merging.adapter_fusion([member]),
        'bank': lambda member: peftjax.serving.bank(mlp, [member]),
        'put': lambda member: peftjax.serving.put(mlp, bank, beside, 2, member),
    }[take]
    for member, words in [
        ((adapter, frozen), 'a tuple of 2; write'),
        (adapter, 'a dict; write'),
        ((adapter, tx, frozen), 'begins with a dict'),
        ((tx, frozen, adapter), 'swapped'),
    ]:
        with pytest.raises(TypeError, match=words):
            act(typing.cast(typing.Any, member))


def test_a_mixture_is_saved_by_value(tmp_path):
    mlp, deltas = _mlp_deltas()
    tx = merging.x_lora(deltas, top=2)
    adapter, frozen = tx.init(jax.random.key(0), mlp)
    adapter = testing.perturb(adapter, 1)
    peftjax.save(tmp_path / 'mixture', mlp, tx, adapter, frozen)
    restored = peftjax.restore(tmp_path / 'mixture', mlp, transform=tx)
    predict = peftjax.adapt(mlp, tx)
    x = jnp.ones((3, 4))
    found = predict(restored.adapter, restored.frozen, x=x)
    np.testing.assert_array_equal(found, predict(adapter, frozen, x=x))
