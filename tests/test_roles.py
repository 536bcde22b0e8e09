"""Roles: what is declared is used, by name or place; what is not declared is refused by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import peftjax
from peftjax.models.attention import AttentionCore
from tests.algebra import moved
from tests.equalities.models import MODELS

KEY = jax.random.key(0)
IDS = jnp.asarray([[3, 5, 7, 9, 0, 0], [2, 4, 6, 8, 10, 12]], jnp.int32)
TURNED = jnp.ones((2, 6))
REAL = jnp.asarray([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], jnp.int32)


class _Text(nn.Module):
    """Looks at all tokens by Flax's attention; its mask is called `padding`."""

    attend: Callable[..., jax.Array] = nn.dot_product_attention

    @nn.compact
    def __call__(self, ids, padding, turned=None):
        x = nn.Embed(20, 8, name='embed')(ids)
        attention = nn.MultiHeadDotProductAttention(2, attention_fn=self.attend, name='attention')
        x = x + attention(x, mask=(padding == 1)[:, None, None, :])
        x = x if turned is None else x * turned[..., None]
        return nn.Dense(3, name='head')(x)


def _text(**roles):
    variables = _Text().init(KEY, IDS, REAL)
    declared = peftjax.Roles(**roles) if roles else None
    return peftjax.wrap(_Text(), variables, (IDS, REAL), roles=declared)


ROLES = {'token_ids': 'ids', 'mask': 'padding', 'embedding': 'embed'}
DECLARED = peftjax.Roles(token_ids='ids', mask='padding', embedding='embed')
PROMPT = peftjax.prompt_tuning(num_virtual_tokens=2, targets='embed')
PREFIX = peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*attention_fn')
LORA = peftjax.lora(rank=2, targets='head')


@pytest.mark.parametrize(
    'transform',
    [PROMPT, PREFIX, peftjax.gated(LORA), peftjax.loreft(rank=2, positions='f1', targets='head')],
    ids=['prompt', 'prefix', 'gated', 'reft'],
)
def test_without_roles_init_says_what_to_write(transform):
    with pytest.raises(peftjax.TargetError, match=r'roles=peftjax.Roles\(.*takes ids, padding'):
        transform.init(KEY, _text())


def test_lora_needs_no_roles():
    adapter, frozen = LORA.init(KEY, _text())
    assert peftjax.adapt(_text(), LORA)(adapter, frozen, IDS, REAL).shape == (2, 6, 3)


def test_a_role_names_an_argument():
    with pytest.raises(TypeError, match="'mask', and the model takes ids, padding, turned"):
        _text(token_ids='ids', mask='mask')
    with pytest.raises(ValueError, match='no regular expression'):
        peftjax.Roles(attention='(')


@pytest.mark.parametrize('transform', [PROMPT, peftjax.gated(LORA)], ids=['prompt', 'gated'])
def test_an_array_without_a_role_is_refused(transform):
    model = _text(token_ids='ids', embedding='embed')
    adapter, frozen = transform.init(KEY, model)
    with pytest.raises(ValueError, match=r"argument 'padding'.*Roles\(mask='padding'\)"):
        peftjax.adapt(model, transform)(adapter, frozen, IDS, REAL)
    known = _text(**ROLES)
    with pytest.raises(ValueError, match=r"argument 'turned' .*float32\[2, 6\]"):
        peftjax.adapt(known, transform)(adapter, frozen, IDS, REAL, turned=TURNED)
    model = _text(**ROLES, along=('turned',))
    found = peftjax.adapt(model, transform)(adapter, frozen, IDS, REAL, turned=TURNED)
    assert found.shape == (2, 6, 3)


def test_a_prompt_behind_a_mask_of_any_name_is_seen():
    model = _text(**ROLES)
    adapter, frozen = PROMPT.init(KEY, model)
    predict = peftjax.adapt(model, PROMPT)
    gradient = jax.grad(lambda a: (predict(a, frozen, IDS, REAL) ** 2).sum())(adapter)
    assert jnp.abs(gradient['embed']['prompt']).max() > 1e-3


def test_a_prefix_on_flax_attention_is_more_keys():
    model = _text(**ROLES)
    adapter, frozen = moved(PREFIX, model)
    found = peftjax.adapt(model, PREFIX)(adapter, frozen, IDS, REAL)
    entry = adapter['sites']['attention/attention_fn']

    def longer(query, key, value, mask, **options):
        ahead = (jnp.broadcast_to(entry[n], (2, 2, 2, 4)) for n in ('key', 'value'))
        key, value = (jnp.concatenate(pair, 1) for pair in zip(ahead, (key, value), strict=True))
        mask = jnp.pad(mask, [(0, 0)] * 3 + [(2, 0)], constant_values=True)
        return nn.dot_product_attention(query, key, value, mask=mask, **options)

    expected = _Text(longer).apply({'params': model.params}, IDS, REAL)
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-6)


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


class _Dropped(nnx.Module):
    def __init__(self, **streams):
        rngs = nnx.Rngs(**streams) if streams else nnx.Rngs(0)
        self.dense = nnx.Linear(4, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.dense(x))


@pytest.mark.parametrize('streams', [{}, {'params': 0, 'dropout': 1}], ids=['one', 'two'])
def test_random_streams_of_nnx_are_named_as_linens_are(streams):
    x = jnp.ones((2, 4))
    model = peftjax.wrap(_Dropped(**streams), None, x)
    tx = peftjax.lora(rank=2, targets='dense')
    adapter, frozen = tx.init(KEY, model)
    predict = peftjax.adapt(model, tx)
    keys = jax.random.split(KEY)
    for rngs in ([{'dropout': key} for key in keys], list(keys)):
        one, other = (predict(adapter, frozen, x, rngs=each) for each in rngs)
        assert not jnp.array_equal(one, other)
        assert jnp.array_equal(one, predict(adapter, frozen, x, rngs=rngs[0]))
    with pytest.raises(ValueError, match='would draw the same at every call'):
        predict(adapter, frozen, x)
    if streams:
        with pytest.raises(ValueError, match=r"keys for \['noise'\].*\['dropout'\]"):
            predict(adapter, frozen, x, rngs={'noise': KEY})


class _Sublayer(nn.Module):
    """The end of a sublayer, and an attention core, called by names in any order."""

    by_name: bool

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(8, name='dense')(x)
        if self.by_name:
            return _End(name='end')(output=y, after=x + y, residual=x)
        return _End(name='end')(x, y, x + y)


class _End(nn.Module):
    def __call__(self, residual, output, after):
        del residual, after
        return output


@pytest.mark.parametrize('reads', ['input', 'after'])
def test_what_a_module_is_given_counts_by_its_signature(reads):
    x = jax.random.normal(KEY, (2, 3, 8))
    tx = peftjax.bottleneck(size=2, reads=reads, targets='end')
    outputs = []
    for by_name in (True, False):
        module = _Sublayer(by_name)
        model = peftjax.wrap(module, module.init(KEY, x), x)
        outputs.append(peftjax.adapt(model, tx)(*moved(tx, model), x))
    np.testing.assert_array_equal(*outputs)


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


def test_gates_of_long_packed_rows_in_bfloat16_are_means():
    tokens = peftjax.Tokens(segments=jnp.repeat(jnp.asarray([1, 2]), jnp.asarray([600, 400]))[None])
    values = jnp.linspace(0.0, 1.0, 1000)[None].astype(jnp.bfloat16)
    found = tokens.means(values, 'a gate')
    wide = np.asarray(values, np.float64)[0]
    expected = [wide[:600].mean(), wide[600:].mean()]
    np.testing.assert_allclose(
        np.asarray(found[0, jnp.asarray([0, 999])], 'f8'), expected, rtol=4e-3
    )


def test_a_prompt_goes_into_one_lookup_alone():
    class Twice(_Text):
        @nn.compact
        def __call__(self, ids, padding, turned=None):
            embed = nn.Embed(20, 8, name='embed')
            return nn.Dense(3, name='head')(embed(ids) + embed(ids * padding))

    variables = Twice().init(KEY, IDS, REAL)
    model = peftjax.wrap(Twice(), variables, (IDS, REAL), roles=DECLARED)
    with pytest.raises(ValueError, match='several times in one call'):
        peftjax.adapt(model, PROMPT)(*PROMPT.init(KEY, model), IDS, REAL)


def test_outputs_of_any_length_lose_no_more_than_the_virtual_tokens():
    class Scores(_Text):
        @nn.compact
        def __call__(self, ids, padding, turned=None):
            x = nn.Embed(20, 8, name='embed')(ids)
            return nn.DenseGeneral((8, 2), name='head')(x.mean(axis=1)), x[..., 0]

    variables = Scores().init(KEY, IDS, REAL)
    model = peftjax.wrap(Scores(), variables, (IDS, REAL), roles=DECLARED)
    scores, first = peftjax.adapt(model, PROMPT)(*PROMPT.init(KEY, model), IDS, REAL)
    assert (scores.shape, first.shape) == ((2, 8, 2), (2, 6))


def test_flaxs_own_cache_is_no_whole_example():
    class Step(nn.Module):
        peftjax_roles = peftjax.Roles(token_ids='ids', embedding='embed')

        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(20, 8, name='embed')(ids)
            attend = nn.MultiHeadDotProductAttention(2, decode=True, name='attention')
            return nn.Dense(3, name='head')(attend(x))

    variables = Step().init(KEY, IDS)
    model = peftjax.wrap(Step(), variables, {'ids': IDS[:, :1], 'mutable': ('cache',)})
    tx = peftjax.gated(LORA)
    adapter, frozen = tx.init(KEY, model)
    with pytest.raises(ValueError, match="Flax's own cache sees a part"):
        peftjax.adapt(model, tx)(adapter, frozen, ids=IDS[:, :1], mutable=('cache',))


def test_roles_of_another_kind_are_refused():
    with pytest.raises(TypeError, match=r"along=\('types',\)"):
        peftjax.Roles(along='types')  # pyright: ignore[reportArgumentType] (wrong on purpose)
    with pytest.raises(TypeError, match=r'write roles=peftjax.Roles'):
        peftjax.wrap(_Text(), _Text().init(KEY, IDS, REAL), (IDS, REAL), roles={'mask': 'padding'})  # pyright: ignore[reportArgumentType] (wrong on purpose)
    params = {'table': jnp.ones((20, 8)), 'head': jnp.ones((8, 3))}
    model = peftjax.wrap(
        lambda params, ids, seen: params['table'][ids] @ params['head'] * seen.mean(),
        params,
        (IDS, TURNED[:, None, None]),
        roles=peftjax.Roles(token_ids='ids', mask='seen'),
    )
    tx = peftjax.gated(LORA)
    with pytest.raises(ValueError, match=r'\[batch, length\] with 1 for tokens'):
        peftjax.adapt(model, tx)(*tx.init(KEY, model), IDS, TURNED[:, None, None])
