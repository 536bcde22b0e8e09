"""A prefix of T5 keeps its distance to the tokens of a row, wherever the padding stands."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import peftjax
from peftjax.models.t5 import T5
from tests.test_t5 import CONFIG, IDS, INPUTS, WRITTEN, params_of


def _model():
    module = T5(CONFIG)
    masks = {'attention_mask': np.ones_like(IDS), 'decoder_attention_mask': np.ones_like(WRITTEN)}
    return peftjax.wrap(module, params_of(module), {**INPUTS, **masks})


@pytest.mark.parametrize('gate', [False, True], ids=['', 'gated'])
def test_a_prefix_stands_before_the_first_token_of_a_row(gate):
    """Padding on the left moves no token nearer to the prefix or away from it."""
    model = _model()
    transform = peftjax.prefix_tuning(num_virtual_tokens=3, targets=r'.*self_attn/core', gate=gate)
    fresh, frozen = transform.init(jax.random.key(0), model)
    predict = peftjax.adapt(model, transform)
    call = functools.partial(predict, peftjax.testing.perturb(fresh, seed=1, size=0.5), frozen)
    expected = call(**INPUTS)
    # Each row has padding of its own on the left, and another in the decoder.
    read, read_mask = _moved_right(IDS, (0, 4))
    written, written_mask = _moved_right(WRITTEN, (3, 1))
    found = call(
        input_ids=read,
        attention_mask=read_mask,
        decoder_input_ids=written,
        decoder_attention_mask=written_mask,
    )
    np.testing.assert_allclose(
        found[written_mask == 1].reshape(expected.shape), expected, atol=1e-5
    )
    if gate:
        return  # It reads whole rows, so there is no call of a part.
    # All rows of a cache end at the same token, so these begin with as much padding as the last.
    written, written_mask = (
        np.pad(WRITTEN, [(0, 0), (2, 0)]),
        np.pad(np.ones((2, 7)), [(0, 0), (2, 0)]),
    )
    logits, cache = call(
        input_ids=read,
        attention_mask=read_mask,
        decoder_input_ids=written[:, :-1],
        decoder_attention_mask=written_mask[:, :-1],
        cache_length=12,
    )
    np.testing.assert_allclose(logits[:, 0], expected[:, -2], atol=1e-5)
    last, _ = call(decoder_input_ids=WRITTEN[:, -1:], cache=cache)
    np.testing.assert_allclose(last[:, 0], expected[:, -1], atol=1e-5)


def _moved_right(ids, padding):
    """The rows with so much padding on the left, and padding on the right up to one length."""
    longest = ids.shape[1] + max(padding)
    rows = np.zeros((len(ids), longest), np.int32)
    mask = np.zeros_like(rows)
    for row, (tokens, start) in enumerate(zip(ids, padding, strict=True)):
        place = slice(start, start + len(tokens))
        rows[row, place], mask[row, place] = tokens, 1
    return rows, mask


def test_a_mixed_batch_of_prefixes_keeps_each_at_its_row():
    model = _model()
    members = []
    for size in (1, 4):
        transform = peftjax.prefix_tuning(num_virtual_tokens=size, targets=r'.*self_attn/core')
        fresh, frozen = transform.init(jax.random.key(size), model)
        members.append((transform, peftjax.testing.perturb(fresh, seed=size, size=0.5), frozen))
    bank, frozen = peftjax.serving.bank(model, members)
    read, mask = _moved_right(IDS, (4, 1))
    read_of = {'input_ids': read, 'attention_mask': mask, 'decoder_input_ids': WRITTEN}
    mixed = peftjax.serving.adapt(model)(bank, [2, 1], frozen, **read_of)
    for row, (transform, adapter, own) in zip((1, 0), members, strict=True):
        alone = peftjax.adapt(model, transform)(adapter, own, **INPUTS)
        np.testing.assert_allclose(mixed[row], alone[row], atol=1e-5)


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
def test_a_mask_costs_no_scores_of_all_queries(scan):
    """Attention in blocks holds a part of the scores, also where each row has a bias of its own."""
    batch, length = 8, 600
    config = dataclasses.replace(CONFIG, num_layers=1, num_decoder_layers=1)
    ids = np.ones((batch, length), np.int32)
    inputs = {'input_ids': ids, 'decoder_input_ids': ids[:, :4]}
    module = T5(config, scan=scan)
    small = {name: each[:1, :4] for name, each in inputs.items()}
    params = module.init(jax.random.key(0), **small)['params']
    model = peftjax.wrap(module, params, {**small, 'attention_mask': ids[:1, :4]})
    transform = peftjax.prefix_tuning(num_virtual_tokens=3, targets=r'encoder/.*self_attn/core')
    adapter, frozen = transform.init(jax.random.key(0), model)
    predict = peftjax.adapt(model, transform)

    def held(**mask):
        def loss(adapter, mask):
            return predict(adapter, frozen, **inputs, **mask).sum()

        plan = jax.jit(jax.grad(loss)).lower(adapter, mask).compile().memory_analysis()
        assert plan is not None
        return plan.temp_size_in_bytes

    scores = 4 * batch * config.num_heads * length * (3 + length)
    assert held(attention_mask=ids) < held() + 0.5 * scores
