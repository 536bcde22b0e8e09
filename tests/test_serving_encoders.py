"""The server with an encoder before the decoder: each request is answered as if it were alone."""

import random
from typing import Any

import jax
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
    for _ in range(count):
        if name == 'whisper':
            prompt = normal.normal(size=(4, 12)).astype(np.float32)
        else:
            prompt = [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 12))]
        yield serving.Request(prompt, draw.randrange(3), draw.randrange(1, 8))


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


@pytest.mark.parametrize(('name', 'make'), [('t5', _prompt), ('whisper', _lora)])
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


@pytest.mark.parametrize(
    ('name', 'wrong', 'message'),
    [
        ('t5', serving.Request([5] * 9, 1, 2), '9 prompt tokens are more than max_prompt=8'),
        ('t5', serving.Request([5], 1, 9), '1 places for the start, 0 for virtual tokens and 9'),
        ('t5', serving.Request([], 1, 2), '0 prompt tokens'),
        (
            'whisper',
            serving.Request(np.ones((4, 10), np.float32), 1, 2),
            r'has the shape (4, 10), but earlier ones (4, 12)',
        ),
    ],
)
def test_a_request_that_is_refused_costs_no_other(name, wrong, message):
    model = MODELS[name]()
    bank, frozen = serving.bank(model, _members(model, _lora))
    longest = 8 if name == 't5' else None
    serve = serving.server(model, rows=3, max_length=9, max_prompt=longest)
    right = next(_requests(name, 1))._replace(max_new_tokens=3)
    right = right if name == 'whisper' else right._replace(prompt=[5, 6])
    answers = {each.number: each for each in serve(bank, frozen, [right, wrong, right])}
    assert message in answers[1].refused and not len(answers[1].tokens)
    assert answers[0].tokens.tolist() == answers[2].tokens.tolist() and not answers[0].refused


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


@pytest.mark.parametrize(
    ('name', 'make'),
    [('t5', _lora), ('t5', _prompt), ('t5', _prefix), ('whisper', _prompt), ('whisper', _prefix)],
)
def test_text_of_a_mixed_batch_is_that_of_each_row(name, make):
    model = MODELS[name]()
    members = _members(model, make)
    bank, frozen = serving.bank(model, members)
    requests = [
        request._replace(slot=slot, max_new_tokens=5)
        for request, slot in zip(_requests(name, 3), (1, 2, 0), strict=True)
    ]
    prompts: Any = [request.prompt for request in requests]
    ids, mask = (np.stack(prompts), None) if name == 'whisper' else peftjax.pad_left(prompts)
    written = serving.generator(model)(
        *(bank, [1, 2, 0], frozen, ids, mask),
        max_new_tokens=5,
        start_token_id=STARTS[name],
        eos_token_id=END,
    )
    for row, request in zip(written.tolist(), requests, strict=True):
        alone = _alone(model, name, members, request)
        assert row == alone + [0] * (5 - len(alone))


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
    for row, (tx, adapter, beside) in enumerate(members):
        alone = {name: each[row : row + 1] for name, each in inputs.items()}
        expected = peftjax.adapt(model, tx)(adapter, beside, **alone)
        assert_close(found[row], expected[0], 1e-5)
