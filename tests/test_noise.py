"""The adapter's own dropout: off without a key, and independent wherever it should be."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import peftjax
from tests.algebra import KEY, X, assert_close, function, mlp


def noisy(model, targets=r'.*', rate=0.5):
    """`predict(adapter_key)` of LoRA with dropout, whose arrays are ones."""
    tx = peftjax.lora(rank=1, targets=targets, dropout=rate)
    adapter, frozen = tx.init(KEY, model)
    adapter = jax.tree.map(jnp.ones_like, adapter)
    predict = peftjax.adapt(model, tx)
    return lambda x, key=None: predict(adapter, frozen, x, adapter_key=key)


def test_dropout_is_off_without_key_or_rate():
    assert_close(noisy(mlp(), rate=0.0)(X, KEY), noisy(mlp())(X), 0)


def test_dropout_follows_its_key():
    predict = noisy(mlp())
    assert_close(predict(X, KEY), predict(X, KEY), 0)
    assert not jnp.allclose(predict(X, KEY), predict(X, jax.random.key(1)))
    assert not jnp.allclose(predict(X, KEY), predict(X))


def test_dropout_keeps_the_expectation():
    model = function(lambda p, x: x @ p['w'], X, w=jnp.ones((4, 3)))
    predict = noisy(model, rate=0.3)
    many = jax.vmap(functools.partial(predict, X))(jax.random.split(KEY, 4000))
    spread = many.std(0) / math.sqrt(len(many))
    assert (jnp.abs(many.mean(0) - predict(X)) < 5 * spread).all()


def scanned(p, x):
    return lax.scan(lambda x, w: (x, x @ w), x, p['w'])[1]


def looped(p, x):
    return jnp.stack([x @ p['w'][i] for i in range(len(p['w']))])


def batched(p, x):
    return jnp.einsum('lti,lio->lto', jnp.stack([x] * len(p['w'])), p['w'])


def vmapped(p, x):
    return jax.vmap(jnp.matmul)(jnp.stack([x] * len(p['w'])), p['w'])


@pytest.mark.parametrize('stack', [scanned, looped, batched, vmapped], ids=lambda f: f.__name__)
def test_each_layer_has_noise_of_its_own(stack):
    x = jnp.ones((2, 16))
    predict = noisy(function(stack, x, w=jnp.ones((3, 16, 5))))
    quiet, loud = predict(x), predict(x, KEY)
    assert jnp.ptp(quiet, axis=0).max() == 0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not jnp.allclose(loud[i], loud[j])


def test_each_use_has_noise_of_its_own():
    x = jnp.ones((2, 16))
    predict = noisy(function(lambda p, x: (x @ p['w'], x @ p['w']), x, w=jnp.ones((16, 5))))
    assert_close(*predict(x))
    assert not jnp.allclose(*predict(x, KEY))


def test_each_leaf_and_each_method_has_noise_of_its_own():
    x = jnp.ones((2, 16))
    model = function(
        lambda p, x: (x @ p['v'], x @ p['w']), x, v=jnp.ones((16, 5)), w=jnp.ones((16, 5))
    )
    assert_close(*noisy(model)(x))
    assert not jnp.allclose(*noisy(model)(x, KEY))
    tx = peftjax.lora(rank=1, targets='w', dropout=0.5)
    twice = peftjax.chain(tx, tx)
    adapter, frozen = twice.init(KEY, model)
    adapter = jax.tree.map(jnp.ones_like, adapter)
    added = (
        peftjax.adapt(model, twice)(adapter, frozen, x, adapter_key=KEY)[1]
        - model.apply(model.params, x)[1]
    )
    # One mask for both would give even multiples of what one kept entry adds, 2.
    assert jnp.any(added % 4 != 0)
