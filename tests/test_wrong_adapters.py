"""Adapters that do not belong to the model, the method or the chain they are used with."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

import peftjax
from tests.algebra import KEY, X, assert_raises, function, mlp

LORA = peftjax.lora(rank=2, targets=r'hidden')
BIASES = peftjax.select(r'.*/bias')
BOTTLENECK = peftjax.bottleneck(size=2, targets=r'hidden')


def at_call(transform, adapter, model=None, params=None, x=X):
    """The adapted model called with an adapter that may not be its own."""
    model = model or mlp()
    given = model.params if params is None else params
    return peftjax.adapt(model, transform)(adapter, given, x)


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
    adapter = transform.init(KEY, mlp())[0]
    other = other_mlp(hidden='hiddem')
    near = "near names: ['hiddem/" + ('kernel' if transform is LORA else 'bias')
    said = ("'hidden/", near, 'another model')
    assert_raises(
        peftjax.AdapterError,
        lambda: transform.merge(adapter, transform.freeze(other, adapter)),
        *said,
    )
    assert_raises(peftjax.AdapterError, lambda: at_call(transform, adapter, other), *said)


@pytest.mark.parametrize('transform', [LORA, BIASES], ids=['lora', 'select'])
def test_a_leaf_of_another_shape(transform):
    adapter = transform.init(KEY, mlp())[0]
    other = other_mlp(width=6)
    path, mine, theirs = (
        ("'hidden/kernel'", '(4, 8)', '(4, 6)')
        if transform is LORA
        else ("'hidden/bias'", '(8,)', '(6,)')
    )
    said = (path, mine, theirs, 'float32', 'another model')
    assert_raises(
        peftjax.AdapterError,
        lambda: transform.merge(adapter, transform.freeze(other, adapter)),
        *said,
    )
    assert_raises(peftjax.AdapterError, lambda: at_call(transform, adapter, other), *said)


def test_a_leaf_of_the_same_shape_that_is_used_otherwise():
    rows = function(lambda p, x: x @ p['w'], X, w=jnp.ones((4, 4)))
    columns = function(lambda p, x: x @ p['w'].T, X, w=jnp.ones((4, 4)))
    tx = peftjax.lora(rank=2, targets='w')
    adapter = tx.init(KEY, rows)[0]
    said = ("'w'", 'rows=(0,)', 'rows=(1,)', 'another model')
    assert_raises(peftjax.AdapterError, lambda: at_call(tx, adapter, columns), *said)


def test_a_module_that_is_not_there():
    other = other_mlp(hidden='hiddem')
    adapter = BOTTLENECK.init(KEY, mlp())[0]
    said = ("'hidden'", "'hiddem'", 'another model')
    assert_raises(peftjax.AdapterError, lambda: at_call(BOTTLENECK, adapter, other), *said)


def test_a_module_of_another_width():
    other = other_mlp(width=6)
    adapter = BOTTLENECK.init(KEY, mlp())[0]
    said = ("'hidden'", '(8, 2) float32', '(2, 6) float32', 'another model')
    assert_raises(peftjax.AdapterError, lambda: at_call(BOTTLENECK, adapter, other), *said)


METHODS = {
    'lora': (LORA, 'WeightAdapter'),
    'select': (BIASES, 'array'),
    'bottleneck': (BOTTLENECK, "'down'"),
    'chain': (peftjax.chain(LORA, BIASES), 'tuple'),
    'named chain': (peftjax.named_chain({'low': LORA, 'bias': BIASES}), "['bias', 'low']"),
}


@pytest.mark.parametrize('foreign', METHODS)
@pytest.mark.parametrize('method', METHODS)
def test_an_adapter_of_another_method(method, foreign):
    if method == foreign:
        return
    transform, expected = METHODS[method]
    adapter = METHODS[foreign][0].init(KEY, mlp())[0]
    for act in (
        lambda: transform.merge(adapter, transform.freeze(mlp(), adapter)),
        lambda: at_call(transform, adapter),
    ):
        assert_raises(peftjax.AdapterError, act, expected, 'found', 'init')


def test_an_adapter_that_lost_its_type():
    adapter = {path: dict(entry) for path, entry in LORA.init(KEY, mlp())[0].items()}
    said = ("found a dict at 'hidden/kernel'", 'WeightAdapter')
    assert_raises(
        peftjax.AdapterError, lambda: LORA.merge(adapter, LORA.freeze(mlp(), adapter)), *said
    )


# --- composition --------------------------------------------------------------------------------


def test_chain_with_a_part_missing():
    tx = peftjax.chain(LORA, BIASES)
    adapter = tx.init(KEY, mlp())[0]
    for parts in (adapter[:1], (*adapter, adapter[0])):
        said = ('2 transforms', f'{len(parts)} parts')
        assert_raises(peftjax.AdapterError, lambda p=parts: tx.merge(p, tx.freeze(mlp(), p)), *said)
        assert_raises(peftjax.AdapterError, lambda p=parts: at_call(tx, p), *said)


def test_named_chain_with_a_part_missing():
    tx = peftjax.named_chain({'low': LORA, 'bias': BIASES})
    adapter = tx.init(KEY, mlp())[0]
    for parts, found in (
        ({'low': adapter['low']}, "['low']"),
        ({**adapter, 'more': {}}, "['bias', 'low', 'more']"),
    ):
        said = ("['bias', 'low']", found)
        assert_raises(peftjax.AdapterError, lambda p=parts: tx.merge(p, tx.freeze(mlp(), p)), *said)
        assert_raises(peftjax.AdapterError, lambda p=parts: at_call(tx, p), *said)


@pytest.mark.parametrize('last', [peftjax.full(), peftjax.select(r'hidden/kernel')])
def test_replacing_what_is_already_adapted(last):
    tx = peftjax.chain(LORA, last)
    said = ("'hidden/kernel'", 'lose the adaptation', 'put select or full', 'first in the chain')
    assert_raises(ValueError, lambda: tx.init(KEY, mlp())[0], *said)
    peftjax.chain(last, LORA).init(KEY, mlp())[0]


def test_merging_what_lives_on_activations():
    for tx in (BOTTLENECK, peftjax.chain(LORA, BOTTLENECK)):
        adapter = tx.init(KEY, mlp())[0]
        said = ("'hidden'", 'cannot merge', 'adapt(model, tx)')
        assert_raises(
            peftjax.MergeError, lambda t=tx, a=adapter: t.merge(a, t.freeze(mlp(), a)), *said
        )


def test_partition_overlap():
    biases, rest = peftjax.partition(mlp().params, r'.*/bias')
    assert_raises(
        ValueError, lambda: peftjax.combine(biases, mlp().params), "'hidden/bias'", 'partition'
    )
    assert_raises(ValueError, lambda: peftjax.combine(biases, {'hidden': rest['hidden']}), 'out')
