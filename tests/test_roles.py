"""Roles: what is declared is used, by name or place; what is not declared is refused by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from tests.algebra import moved

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
    with pytest.raises(TypeError, match="'mask', but the model takes ids, padding, turned"):
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
    for mutable in (('cache',), True):
        with pytest.raises(ValueError, match="Flax's own cache sees a part"):
            peftjax.adapt(model, tx)(adapter, frozen, ids=IDS[:, :1], mutable=mutable)


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
