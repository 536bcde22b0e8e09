"""Attention cores behind a method: what they do by themselves stays what it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import peftjax
from peftjax.models.attention import AttentionCore
from tests.algebra import moved
from tests.equalities.models import MODELS

KEY = jax.random.key(0)
IDS = jnp.asarray([[3, 5, 7, 9, 0, 0], [2, 4, 6, 8, 10, 12]], jnp.int32)
PREFIX = peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*attention_fn')


class _Capped(nn.Module):
    @nn.compact
    def __call__(self, x):
        query, key, value = (nn.DenseGeneral((2, 4), name=name)(x) for name in 'qkv')
        return AttentionCore(softcap=0.5, name='core')(query, key, value)


def test_the_soft_cap_of_a_core_holds_over_a_prefix():
    x = 3 * jax.random.normal(KEY, (2, 5, 6))
    roles = peftjax.Roles(attention='core', other=('x',))
    model = peftjax.wrap(_Capped(), _Capped().init(KEY, x), x, roles=roles)
    tx = peftjax.prefix_tuning(num_virtual_tokens=3, targets='core')
    adapter, frozen = moved(tx, model)
    entry = adapter['sites']['core']
    q, k, v = (
        np.einsum('btd,dnh->btnh', x, model.params[name]['kernel'])
        + np.asarray(model.params[name]['bias'])
        for name in 'qkv'
    )
    k, v = (
        np.concatenate([np.broadcast_to(entry[name], (2, 3, 2, 4)), own], axis=1)
        for name, own in (('key', k), ('value', v))
    )
    scores = 0.5 * np.tanh(np.einsum('btnh,bsnh->bnts', q, k) / 2 / 0.5)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum('bnts,bsnh->btnh', shares, v)
    np.testing.assert_allclose(peftjax.adapt(model, tx)(adapter, frozen, x), expected, atol=1e-5)


def test_the_dropout_of_a_core_survives_a_prefix():
    model = MODELS['bert']()
    tx = peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*core')
    adapter, frozen = moved(tx, model)
    predict = peftjax.adapt(model, tx)

    def states(seed, **options):
        rngs = {'dropout': jax.random.key(seed)}
        return predict(adapter, frozen, input_ids=IDS, rngs=rngs, **options).last_hidden_state

    assert jnp.array_equal(states(0), states(1))
    once, again, other = (states(seed, deterministic=False) for seed in (0, 0, 1))
    assert jnp.array_equal(once, again)
    assert jnp.abs(once - other).max() > 1e-2


def test_a_prefix_behind_an_adaption_prompt_keeps_it():
    model = MODELS['llama']()
    adaption = peftjax.adaption_prompt(num_virtual_tokens=2, targets=r'.*core')
    prefix = peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*core')
    outputs = []
    for pair in ((adaption, prefix), (prefix, adaption)):
        tx = peftjax.chain(*pair)
        parts = [moved(each, model)[0] for each in pair]
        outputs.append(peftjax.adapt(model, tx)(tuple(parts), tx.freeze(model, tuple(parts)), IDS))
    alone = moved(prefix, model)
    assert jnp.abs(outputs[0] - peftjax.adapt(model, prefix)(*alone, IDS)).max() > 1e-3
    np.testing.assert_allclose(*outputs, atol=1e-5)


class _Causal(nnx.Module):
    peftjax_roles = peftjax.Roles(other=('x',))

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.attention(x, is_causal=True)


def test_what_flax_makes_causal_stays_so_behind_a_prefix():
    """A later token changes nothing of those before it, and a prefix is seen by all."""
    x = jax.random.normal(KEY, (1, 5, 8))
    with jax.numpy_dtype_promotion('standard'):  # Flax joins masks of two types.
        model = peftjax.wrap(_Causal(nnx.Rngs(0)), None, x)
        adapter, frozen = moved(PREFIX, model)
        predict = peftjax.adapt(model, PREFIX)
        whole, first = predict(adapter, frozen, x), predict(adapter, frozen, x[:, :3])
        plain = model.apply(model.params, x)
    np.testing.assert_allclose(whole[:, :3], first, atol=1e-6)
    assert jnp.abs(whole - plain).min(axis=-1).max() > 1e-4
    assert bool((jnp.abs(whole - plain).max(axis=-1) > 1e-3).all())


def test_a_core_is_read_as_query_key_and_value():
    x = jax.random.normal(KEY, (2, 3, 8))
    roles = peftjax.Roles(attention='core', other=('x',))
    model = peftjax.wrap(_Capped(), _Capped().init(KEY, x), x, roles=roles)
    site = model.sites.modules['core']
    assert site.inputs == ((2, 3, 2, 4),) * 3
    tx = peftjax.bottleneck(size=2, reads='input', targets='core')
    adapter, frozen = moved(tx, model)
    changed = {
        **model.params,
        **{name: jax.tree.map(lambda leaf: 2 * leaf, model.params[name]) for name in 'kv'},
    }
    predict = peftjax.adapt(model, tx)
    before, after = (
        predict(adapter, frozen._replace(params=params), x) - model.apply(params, x)
        for params in (model.params, changed)
    )
    np.testing.assert_allclose(before, after, atol=1e-6)  # It reads the query, which is the same.
