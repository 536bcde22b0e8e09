"""`init` splits a model into what trains and what does not: nothing is held twice or forgotten."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import peftjax
from peftjax.core import paths
from tests.algebra import KEY, X, assert_close, assert_raises, mlp, moved
from tests.contract_models import IDS, MODELS

MATRICES = r'layers.*'


class Pair(NamedTuple):
    """A method with two sets of settings that differ in numbers alone."""

    make: Any
    one: dict[str, Any]
    other: dict[str, Any]


def _pair(method, one, other, targets=MATRICES, **settings):
    return Pair(functools.partial(method, targets=targets, **settings), one, other)


NUMBERS = {
    'alpha': ({'alpha': 2}, {'alpha': 32}),
    'dropout': ({'dropout': 0.1}, {'dropout': 0.6}),
    'seed': ({'seed': 0}, {'seed': 1}),
}


def _pairs(name, *numbers, targets=MATRICES, **settings):
    """A pair for each of the numbers that the method of this name takes."""
    method = getattr(peftjax, name)
    return {
        f'{name}, {number}': _pair(method, *NUMBERS[number], targets=targets, **settings)
        for number in numbers
    }


PAIRS = {
    **_pairs('lora', 'alpha', 'dropout', rank=2),
    'lora, rank-stabilised': _pair(peftjax.lora, {'rslora': False}, {'rslora': True}, rank=2),
    'lora, alpha by pattern': _pair(
        peftjax.lora, {'alpha_pattern': {'.*up': 1}}, {'alpha_pattern': {'.*down': 9}}, rank=2
    ),
    **_pairs('dora', 'alpha', 'dropout', rank=2),
    **_pairs('lora_fa', 'alpha', 'dropout', 'seed', rank=2),
    **_pairs('randlora', 'alpha', 'dropout', 'seed', rank=2),
    'randlora, sparsity': _pair(peftjax.randlora, {'sparsity': 2.0}, {'sparsity': 5.0}, rank=2),
    **_pairs('vera', 'dropout', 'seed', rank=4),
    **_pairs('loha', 'alpha', rank=2),
    **_pairs('lokr', 'alpha', rank=1, factor=4),
    **_pairs('hira', 'dropout', rank=2),
    **_pairs('gralora', 'alpha', 'dropout', rank=2),
    **_pairs('adalora', 'alpha', 'dropout', init_rank=2),
    **_pairs('delora', 'dropout', rank=2),
    **_pairs('vblora', 'dropout', rank=2, num_vectors=8, vector_length=4, logits_std=1.0),
    'shira, scaling': _pair(peftjax.shira, {'scaling': 1.0}, {'scaling': 9.0}, rank=1),
    **_pairs('shira', 'seed', rank=1),
    'fourierft, scaling': _pair(
        peftjax.fourierft, {'scaling': 30.0}, {'scaling': 300.0}, n_frequency=6
    ),
    **_pairs('fourierft', 'seed', n_frequency=6),
    **_pairs('intrinsic', 'seed', dimension=9),
    **{
        f'intrinsic {kind}, seed': _pair(
            peftjax.intrinsic, {'seed': 0}, {'seed': 3}, dimension=9, projection=kind
        )
        for kind in ('dense', 'sparse')
    },
    'oft, eps': _pair(peftjax.oft, {'eps': 0.01}, {'eps': 0.4}, block_size=4),
    'bottleneck, scale': _pair(
        peftjax.bottleneck, {'scale': 1.0}, {'scale': 7.0}, r'layers.*/(up|down)', size=2
    ),
    **_pairs('loftq', 'alpha', 'dropout', targets=r'layers.*/(up|down)', rank=2, iterations=1),
}


def _counting(model):
    """The model, and a list that grows whenever a program is made of it."""
    traces = []

    def counted(apply):
        def run(*args, **kwargs):
            traces.append(1)
            return apply(*args, **kwargs)

        return run

    return model.replace(apply=counted(model.apply), traceable=counted(model.traceable)), traces


@pytest.mark.sampled
@pytest.mark.parametrize('name', PAIRS)
def test_other_numbers_are_other_arguments_of_the_same_program(name):
    make, *settings = PAIRS[name]
    model, traces = _counting(MODELS['linen scanned']())
    one, other = (make(**each) for each in settings)
    mine, theirs = moved(one, model), moved(other, model)
    predict = peftjax.adapt(model, one)
    before = predict(*mine, ids=IDS, adapter_key=KEY)
    programs = len(traces)
    found = predict(*theirs, ids=IDS, adapter_key=KEY)
    assert programs and len(traces) == programs
    expected = peftjax.adapt(model, other)(*theirs, ids=IDS, adapter_key=KEY)
    assert_close(found, expected, 1e-6)
    assert not jnp.allclose(found, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('init', ['pissa', 'olora'])
@pytest.mark.parametrize('form', ['linen looped', 'linen scanned'])
def test_a_start_from_the_weight_leaves_the_rest_frozen(init, form):
    model = MODELS[form]()
    tx = peftjax.lora(rank=2, alpha=6, init=init, targets=r'layers.*/up')
    adapter, frozen = tx.init(KEY, model)
    plain = model.apply(model.params, ids=IDS)
    assert_close(peftjax.adapt(model, tx)(adapter, frozen, ids=IDS), plain)
    assert_close(tx.merge(adapter, frozen), model.params)
    whole, rest = paths.flatten(model.params), paths.flatten(frozen.params)
    for path, entry in adapter.items():
        taken = 3 * entry['a'] @ entry['b']
        assert_close(rest[path], whole[path] - taken)
        assert float(jnp.abs(taken).max()) > 0.1
    same = set(whole) - set(adapter)
    assert same and all(rest[path] is whole[path] for path in same)


def _in_bfloat16():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mlp().params)
    return mlp().replace(params=params)


@pytest.mark.parametrize(
    'tx',
    [peftjax.select(r'hidden/.*'), peftjax.full()],
    ids=['select', 'full'],
)
def test_a_trained_copy_of_bfloat16_takes_small_steps(tx):
    model, x = _in_bfloat16(), X.astype(jnp.bfloat16)
    adapter, frozen = tx.init(KEY, model)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype(jnp.float32)}
    predict = peftjax.adapt(model, tx)
    plain = model.apply(model.params, x)
    assert plain.dtype == jnp.bfloat16
    assert_close(predict(adapter, frozen, x), plain, 0)
    # A step of 1e-5 of each value: bfloat16 has three significant digits.
    stepped = jax.tree.map(lambda leaf: leaf * (1 + 1e-5) + 1e-5, adapter)
    for before, after in zip(*map(jax.tree.leaves, (adapter, stepped)), strict=True):
        assert (before != after).all()
    slope = jax.grad(lambda adapter: predict(adapter, frozen, x).astype(jnp.float32).sum())(adapter)
    assert {leaf.dtype for leaf in jax.tree.leaves(slope)} == {jnp.dtype(jnp.float32)}
    merged = tx.merge(stepped, frozen)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    wide = tx.merge(stepped, frozen, dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype(jnp.float32)}
    assert_close(paths.flatten(wide)['hidden/kernel'], stepped['hidden/kernel'], 0)


@pytest.mark.parametrize(
    ('tx', 'trained'),
    [
        (peftjax.select(r'.*/bias'), {'hidden/bias', 'out/bias'}),
        (peftjax.full(), {'hidden/bias', 'hidden/kernel', 'out/bias', 'out/kernel'}),
        (
            peftjax.chain(peftjax.select(r'.*/bias'), peftjax.lora(rank=1, targets=r'.*')),
            {'hidden/bias', 'out/bias'},
        ),
    ],
    ids=['select', 'full', 'chain'],
)
def test_each_leaf_is_held_once(tx, trained):
    adapter, frozen = tx.init(KEY, mlp())
    copies = adapter[0] if isinstance(adapter, tuple) else adapter
    assert set(copies) == trained
    whole = paths.flatten(mlp().params)
    slots = paths.slots(frozen.params)
    assert set(slots) == set(whole)
    for path, leaf in whole.items():
        if path in trained:
            assert slots[path] == peftjax.Hole(leaf.shape, leaf.dtype)
        else:
            assert slots[path] is leaf
    assert len(jax.tree.leaves(frozen.params)) == len(whole) - len(trained)


def test_a_dtype_of_a_copy_can_be_chosen():
    model = _in_bfloat16()
    for dtype, expected in ((None, jnp.bfloat16), (jnp.float16, jnp.float16)):
        adapter, _ = peftjax.select(r'.*/bias', dtype=dtype).init(KEY, model)
        assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype(expected)}


def test_what_lacks_a_leaf_is_refused():
    """A hole is filled by the adapter that it was made for, and by no other."""
    _, of_biases = peftjax.select(r'.*/bias').init(KEY, mlp())
    lora = peftjax.lora(rank=2, targets=r'.*')
    adapter, _ = lora.init(KEY, mlp())
    predict = peftjax.adapt(mlp(), lora)
    frozen = peftjax.Frozen(of_biases.params, lora.freeze(mlp(), adapter).own)
    said = ("'hidden/bias'", 'Hole((8,) float32)', 'the frozen that init returned')
    for act in (lambda: predict(adapter, frozen, X), lambda: lora.merge(adapter, frozen)):
        assert_raises(peftjax.AdapterError, act, *said)
    _, of_all = peftjax.full().init(KEY, mlp())
    frozen = peftjax.Frozen(of_all.params, frozen.own)
    said = ("'hidden/kernel'", 'Hole((4, 8) float32)', 'needs the leaf')
    for act in (lambda: predict(adapter, frozen, X), lambda: lora.merge(adapter, frozen)):
        assert_raises(peftjax.AdapterError, act, *said)


@pytest.mark.parametrize(
    'tx',
    [
        peftjax.lora(rank=2, init='pissa', targets=r'hidden'),
        peftjax.lora(rank=2, init='olora', targets=r'hidden'),
        peftjax.loftq(rank=2, targets=r'hidden'),
        peftjax.chain(
            peftjax.lora(rank=2, init='pissa', targets=r'hidden'), peftjax.select(r'.*/bias')
        ),
        peftjax.chain(
            peftjax.full(), peftjax.lora(rank=1, targets=r'.*'), peftjax.dora(rank=1, targets=r'.*')
        ),
        peftjax.top_layers(1, targets=r'layers.*/up/.*'),
        peftjax.randlora(rank=2, targets=r'hidden'),
    ],
    ids=lambda tx: tx.about.name,
)
def test_what_is_frozen_beside_a_trained_adapter_is_what_init_froze(tx):
    """An adapter that comes back from a file finds the base that it was trained on."""
    model = MODELS['linen looped']() if tx.about.name == 'top_layers' else mlp()
    trained, frozen = moved(tx, model)
    again = tx.freeze(model, trained)
    assert jax.tree.structure(again) == jax.tree.structure(frozen)
    assert_close(again, frozen, 1e-6)


# --- a method that starts from a part of a leaf -------------------------------------------------

LORA = peftjax.lora(rank=2, targets=r'hidden')


@pytest.mark.parametrize('other', ['dora', 'vera', 'select'])
def test_numbers_of_another_method_are_refused(other):
    """A DoRA's frozen holds a scale at the same path, which LoRA must not take for its own."""
    others = {
        'dora': peftjax.dora(rank=2, alpha=16, targets=r'hidden'),
        'vera': peftjax.vera(rank=2, targets=r'hidden'),
        'select': peftjax.select(r'hidden/bias'),
    }
    adapter, _ = LORA.init(KEY, mlp())
    _, frozen = others[other].init(KEY, mlp())
    for act in (
        lambda: peftjax.adapt(mlp(), LORA)(adapter, frozen, X),
        lambda: LORA.merge(adapter, frozen),
    ):
        assert_raises(peftjax.AdapterError, act, f'an entry of {other}', 'has no numbers of lora')
