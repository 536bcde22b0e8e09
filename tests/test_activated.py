"""Activated LoRA: where it is in force, in any batch, and what it refuses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peftjax
from peftjax.core.tokens import Tokens
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.t5 import T5
from peftjax.models.t5_config import T5Config
from tests.algebra import KEY, moved
from tests.peft_folders import base

IDS = jnp.asarray([[4, 5, 6, 9, 5, 6, 8, 2], [5, 6, 3, 3, 5, 7, 6, 1]])
LORA = peftjax.lora(rank=2, alpha=6, targets=r'.*/([qv]_proj|up_proj)')
TX = peftjax.activated(LORA, invocation=(5, 6))


@functools.cache
def _llama():
    module = Llama(LlamaConfig(40, 16, 24, 2, 4, 2, 4))
    return peftjax.wrap(module, module.init(KEY, input_ids=IDS), {'input_ids': IDS})


@functools.cache
def _adapted():
    adapter, frozen = moved(TX, _llama())
    return functools.partial(peftjax.adapt(_llama(), TX), adapter, frozen)


def _by_hand(row, real, examples, wanted):
    active = np.zeros(len(row), bool)
    for example in set(examples):
        inside = [i for i, each in enumerate(examples) if each == example]
        starts = [
            i
            for i in inside
            if all(i + j in inside and real[i + j] for j in range(len(wanted)))
            and [row[i + j] for j in range(len(wanted))] == list(wanted)
        ]
        if starts:
            active[max(starts) : inside[-1] + 1] = True
    return active


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_is_in_force_from_the_last_invocation_in_each_example_on(data):
    length = data.draw(st.integers(1, 8))
    row = data.draw(st.lists(st.integers(0, 2), min_size=length, max_size=length))
    real = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    cuts = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    wanted = tuple(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3)))
    examples = np.cumsum(cuts).tolist()
    packed = data.draw(st.booleans())
    tokens = Tokens(
        real=jnp.asarray([real]),
        segments=jnp.asarray([examples]) if packed else None,
        ids=jnp.asarray([row]),
    )
    expected = _by_hand(row, real, examples if packed else [0] * length, wanted)
    assert tokens.from_last(wanted)[0].tolist() == expected.tolist()


def test_text_before_the_invocation_is_that_of_the_base_and_the_rest_is_lora():
    adapter, frozen = moved(TX, _llama())
    found = _adapted()(input_ids=IDS)
    plain = _llama().apply(_llama().params, input_ids=IDS)
    np.testing.assert_array_equal(found[0, :4], plain[0, :4])
    assert (np.abs(found - plain).max(axis=-1)[0, 4:] > 1e-3).all()
    np.testing.assert_allclose(found[1], _adapted()(input_ids=IDS[1:])[0], atol=1e-5)
    # An invocation at the start: the LoRA itself.
    whole = jnp.concatenate([jnp.asarray([[5, 6]]), IDS[:1, :1]], axis=1)
    lora = peftjax.adapt(_llama(), LORA)(adapter['activated'], frozen, input_ids=whole)
    np.testing.assert_allclose(_adapted()(input_ids=whole), lora, atol=1e-5)


def test_nothing_trains_in_a_row_without_an_invocation():
    adapter, frozen = moved(TX, _llama())
    predict = peftjax.adapt(_llama(), TX)

    def loss(adapter):
        return (predict(adapter, frozen, input_ids=jnp.full((1, 5), 6)) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(adapter)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_changes_nothing_even_where_it_looks_like_the_invocation(side):
    alone = np.asarray(_adapted()(input_ids=IDS[:1]))[0]
    ahead, behind = ((3, 0), (0, 3))[side == 'right']
    # Ids of padding that complete an invocation with a token beside them.
    ids = jnp.pad(IDS[:1], ((0, 0), (ahead, behind)), constant_values=5)
    mask = jnp.pad(jnp.ones((1, 8), jnp.int32), ((0, 0), (ahead, behind)))
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    found = _adapted()(input_ids=ids, attention_mask=mask, position_ids=positions)
    np.testing.assert_allclose(found[0, ahead : ahead + 8], alone, atol=1e-5)


def test_packed_examples_have_an_invocation_each():
    ids = jnp.concatenate([IDS[:1, :5], IDS[1:, :4], IDS[:1, 3:7]], axis=1)
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [3] * 4])
    found = _adapted()(input_ids=ids, segment_ids=segments)
    for example in (1, 2, 3):
        there = np.asarray(segments[0] == example)
        alone = _adapted()(input_ids=ids[:, there])
        np.testing.assert_allclose(found[0, there], alone[0], atol=1e-5)


def test_it_writes_what_calls_on_the_whole_text_say():
    adapter, frozen = moved(TX, _llama())
    mask = jnp.asarray([[1] * 8, [0, 0] + [1] * 6])
    generate = peftjax.generator(_llama(), TX)
    written = np.asarray(generate(adapter, frozen, IDS, mask, max_new_tokens=4))
    text, seen = np.asarray(IDS), np.asarray(mask)
    for place in range(4):
        positions = np.maximum(np.cumsum(seen, axis=1) - 1, 0)
        logits = _adapted()(input_ids=text, attention_mask=seen, position_ids=positions)
        token = np.argmax(logits[:, -1], axis=-1)
        np.testing.assert_array_equal(token, written[:, place])
        text = np.concatenate([text, token[:, None]], axis=1)
        seen = np.pad(seen, ((0, 0), (0, 1)), constant_values=1)


def test_a_call_with_a_cache_is_refused():
    with pytest.raises(ValueError, match='call the model on whole rows, without a cache'):
        _adapted()(input_ids=IDS, cache_length=9)


@pytest.mark.parametrize('invocation', [(), (-1,), (1.5,), ((1, 2),), 'go'])
def test_an_invocation_is_token_ids(invocation):
    with pytest.raises(ValueError, match="encode its text with the model's tokenizer"):
        peftjax.activated(LORA, invocation=invocation)


def test_what_cannot_be_activated_is_refused():
    with pytest.raises(ValueError, match='which tokens before the invocation would lack'):
        peftjax.activated(peftjax.lora(rank=1, init='pissa', targets='.*'), invocation=(1,))
    houlsby = peftjax.activated(peftjax.houlsby(size=2, targets=r'.*mlp_branch'), invocation=(1,))
    with pytest.raises(ValueError, match='acts on .* otherwise'):
        houlsby.init(KEY, _llama())
    inputs: dict[str, Any] = {'input_ids': IDS, 'decoder_input_ids': IDS}
    t5 = T5(T5Config(40, 8, 4, 8, 1, 2, 1))
    model = peftjax.wrap(t5, t5.init(KEY, **inputs), inputs)
    with pytest.raises(peftjax.TargetError, match="reads 'input_ids' and writes 'decoder_input"):
        peftjax.activated(peftjax.lora(rank=1, targets='all-linear'), invocation=(1,)).init(
            KEY, model
        )
    adapter, frozen = LORA.init(KEY, _llama())
    with pytest.raises(peftjax.AdapterError, match="activated expects an adapter {'activated'}"):
        peftjax.adapt(_llama(), TX)(adapter, frozen, input_ids=IDS)


def test_virtual_tokens_would_stand_among_the_ids():
    chain = peftjax.chain(peftjax.prompt_tuning(num_virtual_tokens=2), TX)
    with pytest.raises(ValueError, match='adds 2 virtual tokens; leave one'):
        chain.init(KEY, _llama())


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (peftjax.activated(peftjax.dora(rank=2, targets=r'.*q_proj'), invocation=(1,)), 'is dora'),
        (
            peftjax.activated(peftjax.lora(rank=2, targets='embed_tokens'), invocation=(1,)),
            'on linear layers alone',
        ),
    ],
)
def test_what_the_torch_library_does_not_activate_is_not_written(transform, message, tmp_path):
    model = base('llama', True)
    adapter, _ = transform.init(KEY, model)
    with pytest.raises(ValueError, match=message):
        peftjax.save_adapter(tmp_path / 'new', model, transform, adapter)
