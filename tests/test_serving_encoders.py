"""The server with an encoder before the decoder: each request is answered as if it were alone."""

import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import serving, testing
from peftjax.testing.measures import assert_close
from tests.compiled import lowered
from tests.equalities.models import MODELS, VOCABULARY

STARTS = {'t5': 0, 'whisper': (3, 5)}
END = 7


def _lora(rank, model):
    return peftjax.lora(rank=rank, alpha=rank, targets='all-linear')


def _prompt(length, model):
    return peftjax.prompt_tuning(num_virtual_tokens=length)


def _prefix(length, model):
    cores = [path for path, site in model.sites.modules.items() if site.attention]
    return peftjax.prefix_tuning(num_virtual_tokens=length, targets=cores)


def _members(model, make):
    members = []
    for seed, size in enumerate((1, 3)):
        tx = make(size, model)
        adapter, frozen = tx.init(jax.random.key(seed), model)
        members.append((tx, testing.perturb(adapter, seed, 0.3), frozen))
    return members


def _requests(name, count):
    draw, normal = random.Random(5), np.random.default_rng(5)
    for number in range(count):
        if name == 'whisper':
            prompt = normal.normal(size=(4, 12)).astype(np.float32)
        else:
            prompt = [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 12))]
        yield serving.Request(prompt, number % 3, draw.randrange(1, 8))


def _alone(model, name, members, request):
    if request.slot:
        tx, adapter, frozen = members[request.slot - 1]
    else:
        tx, adapter = peftjax.chain(), ()
        frozen = tx.freeze(model, ())
    tokens = peftjax.generator(model, tx)(
        adapter,
        frozen,
        np.asarray([request.prompt]),
        max_new_tokens=request.max_new_tokens,
        start_token_id=STARTS[name],
        eos_token_id=END,
    )[0].tolist()
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


@pytest.mark.sampled
@pytest.mark.parametrize(('name', 'make'), [('t5', _prompt), ('whisper', _prompt)])
def test_each_request_is_answered_as_if_it_were_alone(name, make):
    model = MODELS[name]()
    members = _members(model, make)
    bank, frozen = serving.bank(model, members)
    serve = serving.server(
        model,
        rows=3,
        max_length=16,
        max_prompt=12 if name == 't5' else None,
        start_token_id=STARTS[name],
        eos_token_id=END,
    )
    requests = list(_requests(name, 8))
    answers = {each.number: each for each in serve(bank, frozen, iter(requests))}
    assert sorted(answers) == list(range(8))
    texts = []
    for number, request in enumerate(requests):
        assert not answers[number].refused
        texts.append(tuple(answers[number].tokens.tolist()))
        assert list(texts[-1]) == _alone(model, name, members, request)
    assert len(set(texts)) > 3  # Else an exchange of two rows would not be seen.


@pytest.mark.sampled
@pytest.mark.parametrize(
    ('name', 'wrong', 'message'),
    [
        ('t5', serving.Request([5] * 9, 1, 2), '9 prompt tokens are more than max_prompt=8'),
        ('t5', serving.Request([5], 1, 9), '1 places before the answer (0 virtual tokens) and 9'),
        ('t5', serving.Request([], 1, 2), 'prompt length 0'),
        ('t5', serving.Request('12', 1, 2), 'write token ids [tokens]'),  # pyright: ignore[reportArgumentType] (wrong)
        ('t5', serving.Request(np.array([1.9, 2.9]), 1, 2), 'the prompt is float64[2]; write'),
        ('t5', serving.Request(np.ones((2, 3), int), 1, 2), 'the prompt is int64[2, 3]; write'),
        ('t5', serving.Request([[5], [5, 6]], 1, 2), 'a list of lists'),  # pyright: ignore[reportArgumentType] (wrong)
        ('whisper', serving.Request(np.ones((12, 4)), 1, 2), 'input_features must be floats'),
        ('whisper', serving.Request(np.ones((4, 12), int), 1, 2), 'input_features must be floats'),
    ],
)
def test_a_request_that_is_refused_costs_no_other(name, wrong, message):
    model = MODELS[name]()
    bank, frozen = serving.bank(model, _members(model, _lora))
    longest = 8 if name == 't5' else None
    serve = serving.server(model, rows=3, max_length=9, max_prompt=longest)
    right = next(_requests(name, 1))._replace(slot=1, max_new_tokens=3)
    right = right if name == 'whisper' else right._replace(prompt=[5, 6])
    answers = {each.number: each for each in serve(bank, frozen, [wrong, right, wrong, right])}
    assert message in answers[0].refused  # Features are measured by earlier ones after that.
    for number in (0, 2):
        assert answers[number].refused and not len(answers[number].tokens)
    assert answers[1].tokens.tolist() == answers[3].tokens.tolist() and not answers[1].refused


def test_features_of_another_shape_do_not_fit_into_the_rows(monkeypatch):
    model = MODELS['whisper']()
    monkeypatch.setattr('peftjax.models.whisper._check_features', lambda *_: None)
    bank, frozen = serving.bank(model, _members(model, _lora))
    serve = serving.server(model, rows=2, max_length=9)
    right = next(_requests('whisper', 1))
    wide = right._replace(prompt=np.asarray(right.prompt)[:, :10])
    low = right._replace(prompt=jnp.asarray(right.prompt, jnp.bfloat16))
    answers = {each.number: each for each in serve(bank, frozen, [right, wide, low])}
    told = 'the prompt is float32[4, 10]; write float32[4, 12], as the first one was'
    assert [answers[n].refused for n in range(3)] == ['', told, '']


def test_virtual_tokens_of_an_encoder_take_no_place_of_the_decoder():
    model = MODELS['t5']()
    bank, frozen = serving.bank(model, _members(model, _prompt))
    serve = serving.server(model, rows=1, max_length=4, max_prompt=8)
    [answer] = serve(bank, frozen, [serving.Request([5], 2, 3)])
    assert len(answer.tokens) == 3


def test_a_decoder_starts_with_a_token():
    model = MODELS['t5']()
    with pytest.raises(ValueError, match='write start_token_id=<id>, or several'):
        serving.server(model, rows=1, max_length=4, max_prompt=8, start_token_id=())
    bank, frozen = serving.bank(model, _members(model, _lora))
    with pytest.raises(ValueError, match='write start_token_id=<id>, or several'):
        serving.generator(model)(
            bank, [1], frozen, np.array([[5]]), max_new_tokens=2, start_token_id=()
        )


@pytest.mark.sampled
@pytest.mark.parametrize('name', STARTS)
def test_tokens_after_padding_in_the_first_call_do_not_see_it(name):
    """A call on the whole text against a first call and one for each token that follows."""
    model = MODELS[name]()
    read = {'input_ids': np.array([[5, 6], [7, 8]])}
    if name == 'whisper':
        read = {'input_features': np.stack([r.prompt for r in _requests(name, 2)])}
    text = np.random.default_rng(1).integers(3, VOCABULARY, (2, 6))
    mask = np.array([[0, 0, 1, 1, 1, 1], [1] * 6])
    whole = model.apply(model.params, **read, decoder_input_ids=text, decoder_attention_mask=mask)
    logits, cache = model.apply(
        model.params,
        **read,
        decoder_input_ids=text[:, :3],
        decoder_attention_mask=mask[:, :3],
        cache_length=6,
    )
    for place in (3, 4, 5):
        assert_close(logits[:, -1], whole[:, place - 1], 1e-5)
        token = text[:, place : place + 1]
        logits, cache = model.apply(model.params, decoder_input_ids=token, cache=cache)
    assert_close(logits[:, -1], whole[:, 5], 1e-5)


def test_one_program_writes_for_prompts_of_every_length():
    model = MODELS['t5']()
    bank, frozen = serving.bank(model, _members(model, _lora))
    serve = serving.server(model, rows=1, max_length=8, max_prompt=12)
    with lowered() as programs:
        list(serve(bank, frozen, [serving.Request([5], 1, 2)]))
    assert programs  # The search finds what there is.
    with lowered() as programs:
        list(serve(bank, frozen, [serving.Request([5] * 11, 2, 3), serving.Request([4], 0, 2)]))
    assert not programs


@pytest.mark.sampled
@pytest.mark.parametrize(
    ('name', 'make'),
    [('t5', _lora), ('t5', _prompt), ('t5', _prefix), ('whisper', _prompt), ('whisper', _prefix)],
)
def test_text_of_a_mixed_batch_is_that_of_each_row(name, make):
    model = MODELS[name]()
    members = _members(model, make)
    bank, frozen = serving.bank(model, members)
    requests = [each._replace(max_new_tokens=8) for each in _requests(name, 12)]
    prompts: Any = [request.prompt for request in requests]
    ids, mask = (np.stack(prompts), None) if name == 'whisper' else peftjax.pad_left(prompts)
    start, slots = STARTS[name], np.array([request.slot for request in requests])
    options: Any = {'max_new_tokens': 8, 'start_token_id': start}
    written = serving.generator(model)(bank, slots, frozen, ids, mask, **options)
    base = peftjax.chain()
    alone = [
        peftjax.generator(model, tx)(adapter, beside, ids, mask, **options)
        for tx, adapter, beside in [(base, (), base.freeze(model, ())), *members]
    ]
    for slot, expected in enumerate(alone):
        np.testing.assert_array_equal(written[slots == slot], expected[slots == slot])
    assert any((each != alone[0]).any() for each in alone[1:])  # The adapters say other things.


@pytest.mark.parametrize('make', [_prompt, _prefix])
def test_scores_of_prompts_of_several_lengths_are_those_of_each_alone(make):
    model = MODELS['t5']()
    members = _members(model, make)
    bank, frozen = serving.bank(model, members)
    prompts: Any = [request.prompt for request in _requests('t5', 3)]
    ids, mask = peftjax.pad_left(prompts)
    written = np.array([[0, 5, 9]] * 3)
    inputs = {'input_ids': ids, 'attention_mask': mask, 'decoder_input_ids': written}
    found = serving.adapt(model)(bank, [1, 2, 0], frozen, **inputs)
    base = peftjax.chain()
    for row, (tx, adapter, beside) in enumerate([*members, (base, (), base.freeze(model, ()))]):
        alone = {name: each[row : row + 1] for name, each in inputs.items()}
        expected = peftjax.adapt(model, tx)(adapter, beside, **alone)
        assert_close(found[row], expected[0], 1e-5)
