"""Virtual tokens and prefixes on the models here: positions, masks, starts, exports, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from tests.algebra import KEY, moved

IDS = jnp.asarray(np.random.default_rng(0).integers(1, 40, (2, 6)), jnp.int32)
MASK = jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], jnp.int32)
INPUTS = {'input_ids': IDS, 'attention_mask': MASK}


def _wrapped(module):
    return peftjax.wrap(module, module.init(KEY, **INPUTS), INPUTS)


@functools.cache
def llama():
    return _wrapped(Llama(LlamaConfig(40, 16, 24, 2, 4, 2, 4)))


@functools.cache
def bert():
    return _wrapped(Bert(BertConfig(40, 16, 2, 4, 24, 32), outputs=3))


MODELS = {
    'llama': (llama, 'embed_tokens', r'layers/self_attn/core'),
    'bert': (bert, 'embeddings/word_embeddings', r'layers/attention/core'),
}
METHODS = {
    'prompt': lambda embed, core: peftjax.prompt_tuning(num_virtual_tokens=3, targets=embed),
    'prefix': lambda embed, core: peftjax.prefix_tuning(num_virtual_tokens=3, targets=core),
    'placed': lambda embed, core: peftjax.p_tuning(
        num_virtual_tokens=3, places=(0, 1, 4), targets=embed
    ),
}


def _outputs(result):
    return np.asarray(jax.tree.leaves(result)[0])


@pytest.mark.sampled
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', MODELS)
def test_padding_changes_nothing_of_the_tokens_before_it(name, method):
    build, embed, core = MODELS[name]
    model = build()
    tx = METHODS[method](embed, core)
    adapter, frozen = moved(tx, model)
    predict = peftjax.adapt(model, tx)
    padded = _outputs(predict(adapter, frozen, **INPUTS))
    short = {key: value[:, :4] for key, value in INPUTS.items()}
    cut = _outputs(predict(adapter, frozen, **short))
    if name == 'llama':
        assert padded.shape == (2, 6, 40)
        np.testing.assert_allclose(padded[1, :4], cut[1], atol=1e-5)
    else:
        np.testing.assert_allclose(padded[1], cut[1], atol=1e-5)
    plain = _outputs(model.apply(model.params, **INPUTS))
    assert np.abs(padded - plain).max() > 1e-3


def test_a_prompt_of_embedded_tokens_is_those_tokens():
    tx = peftjax.prompt_tuning(
        num_virtual_tokens=3, init=[5, 9], keep_virtual=True, targets='embed_tokens'
    )
    found = peftjax.adapt(llama(), tx)(*tx.init(KEY, llama()), **INPUTS)
    ahead = jnp.broadcast_to(jnp.asarray([5, 9, 5]), (2, 3))
    expected = llama().apply(
        llama().params,
        input_ids=jnp.concatenate([ahead, IDS], axis=1),
        attention_mask=jnp.concatenate([jnp.ones_like(ahead), MASK], axis=1),
    )
    real = np.concatenate([np.ones((2, 3)), MASK], axis=1) == 1
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5)


def test_placed_tokens_stand_where_they_are_said_to():
    tx = peftjax.prompt_tuning(
        num_virtual_tokens=3, init=[5, 9, 7], places=(1, 1, 6), targets='embed_tokens'
    )
    positions = jnp.arange(6)[None]
    found = peftjax.adapt(llama(), tx)(
        *tx.init(KEY, llama()), input_ids=IDS, position_ids=positions
    )
    whole = jnp.concatenate(
        [
            IDS[:, :1],
            *(jnp.full((2, 1), token) for token in (5, 9)),
            IDS[:, 1:],
            jnp.full((2, 1), 7),
        ],
        axis=1,
    )
    expected = llama().apply(llama().params, input_ids=whole)
    np.testing.assert_allclose(found, expected[:, [0, 3, 4, 5, 6, 7]], atol=1e-5)


def test_a_prefix_that_is_the_cache_of_tokens_stands_for_them():
    """The keys and values that the first layer computes of a token, as its prefix."""
    model = _wrapped(Llama(LlamaConfig(40, 16, 24, 1, 4, 2, 4)))
    tx = peftjax.prefix_tuning(num_virtual_tokens=1, targets=r'layers/self_attn/core')
    layer = jax.tree.map(lambda leaf: leaf[0], model.params['layers'])
    x = model.params['embed_tokens']['embedding'][7]
    x = x / jnp.sqrt((x**2).mean() + 1e-6) * layer['input_layernorm']['scale']
    # The token at position 0 is not turned.
    cache = {
        name: (x @ layer['self_attn'][f'{name[0]}_proj']['kernel']).reshape(1, 1, 2, 4)
        for name in ('key', 'value')
    }
    fresh, frozen = tx.init(KEY, model)
    adapter = {'sites': {'layers/self_attn/core': peftjax.Entry('prefix_tuning', cache)}}
    assert jax.tree.map(jnp.shape, adapter) == jax.tree.map(jnp.shape, fresh)
    found = peftjax.adapt(model, tx)(adapter, frozen, input_ids=IDS)
    ids = jnp.concatenate([jnp.full((2, 1), 7), IDS], axis=1)
    expected = model.apply(model.params, input_ids=ids)[:, 1:]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    still = peftjax.prefix_tuning(
        num_virtual_tokens=1, shift_positions=False, targets=r'layers/self_attn/core'
    )
    frozen = still.freeze(model, adapter)
    there = peftjax.adapt(model, still)(adapter, frozen, input_ids=IDS)
    assert jnp.abs(there - expected).max() > 1e-3


@pytest.mark.parametrize('encoder', ['mlp', 'lstm'])
def test_what_is_exported_computes_the_same_without_the_network(encoder):
    tx = peftjax.p_tuning(num_virtual_tokens=3, encoder=encoder, targets='embed_tokens')
    adapter, frozen = moved(tx, llama())
    plain = peftjax.prompt_tuning(num_virtual_tokens=3, targets='embed_tokens')
    exported = peftjax.export_prompt(adapter)
    np.testing.assert_allclose(
        peftjax.adapt(llama(), plain)(exported, plain.freeze(llama(), exported), **INPUTS),
        peftjax.adapt(llama(), tx)(adapter, frozen, **INPUTS),
        atol=1e-5,
    )
    core = r'layers/self_attn/core'
    tx = peftjax.prefix_tuning(num_virtual_tokens=3, projection=5, gate=True, targets=core)
    adapter, frozen = moved(tx, llama())
    plain = peftjax.prefix_tuning(num_virtual_tokens=3, gate=True, targets=core)
    exported = peftjax.export_prefix(adapter)
    assert jax.tree.structure(exported) == jax.tree.structure(plain.init(KEY, llama())[0])
    np.testing.assert_allclose(
        peftjax.adapt(llama(), plain)(exported, plain.freeze(llama(), exported), **INPUTS),
        peftjax.adapt(llama(), tx)(adapter, frozen, **INPUTS),
        atol=1e-5,
    )


def test_prompts_start_from_the_vocabulary_and_from_draws():
    def start(**options):
        tx = peftjax.prompt_tuning(num_virtual_tokens=8, targets='embed_tokens', **options)
        return np.asarray(tx.init(KEY, llama())[0]['embed_tokens']['prompt'])

    table = np.asarray(llama().params['embed_tokens']['embedding'])
    rows = [int(np.abs(table - row).sum(axis=1).argmin()) for row in start(common=10)]
    assert len(set(rows)) == 8
    assert max(rows) < 10
    np.testing.assert_array_equal(start(common=10), table[rows])
    np.testing.assert_array_equal(start(init=[3, 4, 5]), table[[3, 4, 5, 3, 4, 5, 3, 4]])
    assert np.abs(start(init='uniform')).max() <= 0.5


def _call(tx, **inputs):
    return peftjax.adapt(llama(), tx)(*tx.init(KEY, llama()), **inputs)


def _prompt(**options):
    return peftjax.prompt_tuning(**{'num_virtual_tokens': 2, 'targets': 'embed_tokens'} | options)


PREFIX = peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*core')


@pytest.mark.parametrize(
    ('make', 'error', 'message'),
    [
        (lambda: _prompt(init='words'), ValueError, "init 'words' is unknown"),
        (lambda: _prompt(places=(1, 0)), ValueError, '2 ascending numbers'),
        (lambda: _prompt(init=[40]).init(KEY, llama()), ValueError, 'token ids from 0 to 39'),
        (
            lambda: _prompt(targets=r'layers.*').init(KEY, llama()),
            peftjax.TargetError,
            'one embedding',
        ),
        (
            lambda: _prompt(targets=r'norm').init(KEY, llama()),
            peftjax.TargetError,
            'no table of tokens',
        ),
        (
            lambda: _call(_prompt(), **INPUTS, segment_ids=MASK),
            ValueError,
            'attention_mask in place',
        ),
        (
            lambda: peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'layers/mlp').init(
                KEY, llama()
            ),
            peftjax.TargetError,
            'not known as an attention core',
        ),
        (
            lambda: peftjax.p_tuning(
                num_virtual_tokens=2,
                encoder='gru',  # pyright: ignore[reportArgumentType] wrong on purpose
                targets='.*',
            ),
            ValueError,
            'lstm',
        ),
        (
            lambda: peftjax.chain(_prompt(), PREFIX).init(KEY, llama()),
            ValueError,
            'one with the sum of both',
        ),
        (
            lambda: peftjax.export_prefix({'a': 1}),
            peftjax.AdapterError,
            "found a dict with \\['a'\\]",
        ),
    ],
)
def test_what_cannot_be_says_what_to_write(make, error, message):
    with pytest.raises(error, match=message):
        make()
