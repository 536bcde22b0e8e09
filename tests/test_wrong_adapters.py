"""Adapters that do not belong to the model, the method or the chain they are used with."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest

import peftjax
from tests.algebra import KEY, X, assert_raises, function, mlp

LORA = peftjax.lora(rank=2, targets=r'hid.*')
BIASES = peftjax.select(r'.*/bias')
BOTTLENECK = peftjax.bottleneck(size=2, targets=r'hid.*')


def check_refused(transform, adapter, model, *said):
    """Neither `merge` nor a call takes `adapter` beside what the transform freezes of `model`."""
    _, frozen = transform.init(KEY, model)
    assert_raises(peftjax.AdapterError, lambda: transform.merge(adapter, frozen), *said)
    check_refused_at_a_call(transform, adapter, model, *said)


def check_refused_at_a_call(transform, adapter, model, *said):
    _, frozen = transform.init(KEY, model)
    predict = peftjax.adapt(model, transform)
    assert_raises(peftjax.AdapterError, lambda: predict(adapter, frozen, X), *said)


class Other(nn.Module):
    hidden: str = 'hidden'
    width: int = 8

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name='out')(nn.Dense(self.width, name=self.hidden)(x))


def other_mlp(**fields):
    module = Other(**fields)
    return peftjax.wrap(module, module.init(KEY, X), X)


@pytest.mark.parametrize('transform', [LORA, BIASES], ids=['lora', 'select'])
def test_a_leaf_that_is_not_there(transform):
    adapter, _ = transform.init(KEY, mlp())
    near = "near names: ['hiddem/" + ('kernel' if transform is LORA else 'bias')
    said = ("'hidden/", near, 'another model')
    check_refused(transform, adapter, other_mlp(hidden='hiddem'), *said)


@pytest.mark.parametrize('transform', [LORA, BIASES], ids=['lora', 'select'])
def test_a_leaf_of_another_shape(transform):
    adapter, _ = transform.init(KEY, mlp())
    path, mine, theirs = (
        ("'hidden/kernel'", '(4, 8)', '(4, 6)')
        if transform is LORA
        else ("'hidden/bias'", '(8,)', '(6,)')
    )
    said = (path, mine, theirs, 'float32', 'another model')
    check_refused(transform, adapter, other_mlp(width=6), *said)


def test_a_leaf_of_the_same_shape_that_is_used_otherwise():
    rows = function(lambda p, x: x @ p['w'], X, w=jnp.ones((4, 4)))
    columns = function(lambda p, x: x @ p['w'].T, X, w=jnp.ones((4, 4)))
    tx = peftjax.lora(rank=2, targets='w')
    adapter, _ = tx.init(KEY, rows)
    said = ("'w'", 'rows=(0,)', 'rows=(1,)', 'another model')
    check_refused_at_a_call(tx, adapter, columns, *said)


def test_a_module_that_is_not_there():
    adapter, _ = BOTTLENECK.init(KEY, mlp())
    said = ("'hidden'", "'hiddem'", 'another model')
    check_refused_at_a_call(BOTTLENECK, adapter, other_mlp(hidden='hiddem'), *said)


def test_a_module_of_another_width():
    adapter, _ = BOTTLENECK.init(KEY, mlp())
    said = ("'hidden'", '(8, 2) float32', '(2, 6) float32', 'another model')
    check_refused_at_a_call(BOTTLENECK, adapter, other_mlp(width=6), *said)


METHODS = {
    'lora': (LORA, 'of lora as its own'),
    'select': (BIASES, 'an entry of select'),
    'bottleneck': (BOTTLENECK, 'of bottleneck as its own'),
    'chain': (peftjax.chain(LORA, BIASES), 'tuple'),
    'named chain': (peftjax.named_chain({'low': LORA, 'bias': BIASES}), "['bias', 'low']"),
}


@pytest.mark.parametrize('foreign', METHODS)
@pytest.mark.parametrize('method', METHODS)
def test_an_adapter_of_another_method(method, foreign):
    if method == foreign:
        return
    transform, expected = METHODS[method]
    adapter, _ = METHODS[foreign][0].init(KEY, mlp())
    check_refused(transform, adapter, mlp(), expected, 'found', 'init')
    assert_raises(
        peftjax.AdapterError, lambda: transform.freeze(mlp(), adapter), expected, 'found', 'init'
    )


# All that act on one site, by name. Several write arrays of the same names and shapes.
EACH = {
    'adalora': peftjax.adalora(init_rank=2, targets=r'hidden'),
    'boft': peftjax.boft(block_size=2, factors=1, targets=r'hidden'),
    'bottleneck': BOTTLENECK,
    'c3a': peftjax.c3a(block_size=2, targets=r'hidden'),
    'compacter': peftjax.compacter(size=2, terms=2, targets=r'hidden'),
    'delora': peftjax.delora(rank=2, targets=r'hidden'),
    'diff_pruning': peftjax.diff_pruning(targets=r'hidden'),
    'direft': peftjax.direft(rank=2, targets=r'hidden'),
    'dora': peftjax.dora(rank=2, targets=r'hidden'),
    'fish_mask': peftjax.fish_mask({'hidden/kernel': [0, 9]}),
    'fourierft': peftjax.fourierft(n_frequency=4, targets=r'hidden'),
    'gated': peftjax.gated(LORA),
    'gralora': peftjax.gralora(rank=2, targets=r'hidden'),
    'hira': peftjax.hira(rank=2, targets=r'hidden'),
    'hra': peftjax.hra(rank=2, targets=r'hidden'),
    'ia3': peftjax.ia3(targets=r'hidden'),
    'intrinsic': peftjax.intrinsic(dimension=3),
    'invertible_adapter': peftjax.invertible_adapter(size=2, targets=r'hidden'),
    'loftq': peftjax.loftq(rank=2, targets=r'hidden'),
    'loha': peftjax.loha(rank=2, targets=r'hidden'),
    'lokr': peftjax.lokr(rank=1, factor=2, targets=r'hidden'),
    'lora': LORA,
    'lora_fa': peftjax.lora_fa(rank=2, targets=r'hidden'),
    'loreft': peftjax.loreft(rank=2, targets=r'hidden'),
    'miss': peftjax.miss(rank=2, targets=r'hidden'),
    'noreft': peftjax.noreft(rank=2, targets=r'hidden'),
    'oft': peftjax.oft(block_size=2, targets=r'hidden'),
    'psoft': peftjax.psoft(peftjax.principal_subspaces(mlp(), rank=2, targets=r'hidden')),
    'randlora': peftjax.randlora(rank=2, targets=r'hidden'),
    'road': peftjax.road(group_size=2, targets=r'hidden'),
    'select': BIASES,
    'shira': peftjax.shira(rank=1, targets=r'hidden'),
    'vblora': peftjax.vblora(rank=2, num_vectors=8, vector_length=2, targets=r'hidden'),
    'vera': peftjax.vera(rank=2, targets=r'hidden'),
}


@functools.cache
def started(name):
    return EACH[name].init(KEY, mlp())


@pytest.mark.sampled
@pytest.mark.parametrize('name', EACH)
def test_each_method_takes_its_own_adapters_and_no_others(name):
    transform = EACH[name]
    predict = peftjax.adapt(mlp(), transform)
    adapter, frozen = started(name)
    assert predict(adapter, frozen, X[None]).shape == (1, 2, 3)
    for foreign in set(EACH) - {name}:
        other = started(foreign)[0]
        for act in (
            lambda other=other: predict(other, frozen, X[None]),
            lambda other=other: transform.merge(other, frozen),
            lambda other=other: transform.freeze(mlp(), other),
        ):
            assert_raises(peftjax.AdapterError, act, name, 'found', 'init')


@pytest.mark.parametrize('transform', [LORA, BIASES, BOTTLENECK], ids=['lora', 'select', 'module'])
@pytest.mark.parametrize('of', [peftjax.oft(block_size=2, targets=r'out'), peftjax.chain()])
def test_what_another_transform_froze(transform, of):
    adapter, _ = transform.init(KEY, mlp())
    frozen = of.init(KEY, mlp())[1]
    predict = peftjax.adapt(mlp(), transform)
    said = ('frozen.own has no numbers of', 'by another transform')
    assert_raises(peftjax.AdapterError, lambda: predict(adapter, frozen, X), *said)


@pytest.mark.parametrize(
    'of', [peftjax.chain(LORA, BIASES), peftjax.named_chain({'low': LORA, 'bias': BIASES})]
)
def test_what_a_chain_froze(of):
    adapter, _ = LORA.init(KEY, mlp())
    frozen = of.init(KEY, mlp())[1]
    predict = peftjax.adapt(mlp(), LORA)
    act = functools.partial(predict, adapter, frozen, X)
    assert_raises(peftjax.AdapterError, act, 'no numbers of lora', 'frozen is of a chain of 2')


def test_all_that_init_returns_as_an_adapter(tmp_path):
    both = LORA.init(KEY, mlp())
    predict = peftjax.adapt(mlp(), LORA)
    for act in (
        lambda: predict(both, both[1], X),
        lambda: predict(both, X),
        lambda: LORA.merge(both, both[1]),
        lambda: LORA.freeze(mlp(), both),
        lambda: peftjax.save_adapter(tmp_path, mlp(), LORA, both),
    ):
        assert_raises(TypeError, act, 'pair that init returns', 'adapter, frozen = tx.init(key, m')


def test_without_frozen():
    adapter, _ = LORA.init(KEY, mlp())
    predict = peftjax.adapt(mlp(), LORA)
    said = 'write adapter, frozen = tx.init(key, model) and pass both'
    assert_raises(TypeError, lambda: predict(adapter), 'frozen is missing', said)
    assert_raises(TypeError, lambda: predict(adapter, X), 'frozen is an array', said)


def test_swapped_arguments(tmp_path):
    untyped: Any = peftjax
    adapter, _ = LORA.init(KEY, mlp())
    for act, said in (
        (lambda: LORA.freeze(adapter, mlp()), 'swapped: write tx.freeze(model, adapter)'),
        (lambda: LORA.freeze(adapter, adapter), 'model is a dict; write tx.freeze(model, adapter'),
        (
            lambda: untyped.save_adapter(tmp_path, LORA, mlp(), adapter),
            'save_adapter(folder, model, tx, adapter)',
        ),
        (lambda: untyped.load_adapter(mlp(), tmp_path), 'load_adapter(folder, model)'),
    ):
        assert_raises(TypeError, act, said)


def test_an_adapter_that_lost_its_type():
    adapter = {path: dict(entry) for path, entry in LORA.init(KEY, mlp())[0].items()}
    check_refused(LORA, adapter, mlp(), "found a dict with ['a', 'b'] at 'hidden/kernel'", 'entry')


# --- composition --------------------------------------------------------------------------------


def test_chain_with_a_part_missing():
    tx = peftjax.chain(LORA, BIASES)
    adapter, _ = tx.init(KEY, mlp())
    for parts in (adapter[:1], (*adapter, adapter[0])):
        check_refused(tx, parts, mlp(), '2 transforms', f'{len(parts)} parts')


def test_named_chain_with_a_part_missing():
    tx = peftjax.named_chain({'low': LORA, 'bias': BIASES})
    adapter, _ = tx.init(KEY, mlp())
    for parts, found in (
        ({'low': adapter['low']}, "['low']"),
        ({**adapter, 'more': {}}, "['bias', 'low', 'more']"),
    ):
        check_refused(tx, parts, mlp(), "['bias', 'low']", found)


@pytest.mark.parametrize('last', [peftjax.full(), peftjax.select(r'hidden/kernel')])
def test_replacing_what_is_already_adapted(last):
    tx = peftjax.chain(LORA, last)
    said = ("'hidden/kernel'", 'lose the adaptation', 'write the later one earlier in the chain')
    assert_raises(ValueError, lambda: tx.init(KEY, mlp()), *said)
    peftjax.chain(last, LORA).init(KEY, mlp())


def test_merging_what_lives_on_activations():
    for tx in (BOTTLENECK, peftjax.chain(LORA, BOTTLENECK)):
        given = tx.init(KEY, mlp())
        said = ("nothing can be merged at ['hidden']", 'adapt(model, tx)')
        assert_raises(peftjax.MergeError, lambda t=tx, g=given: t.merge(*g), *said)


def test_partition_overlap():
    biases, rest = peftjax.partition(mlp().params, r'.*/bias')
    assert_raises(
        ValueError, lambda: peftjax.combine(biases, mlp().params), "'hidden/bias'", 'partition'
    )
    assert_raises(ValueError, lambda: peftjax.combine(biases, {'hidden': rest['hidden']}), 'out')
