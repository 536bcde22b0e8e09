"""Prompts and prefixes of several lengths, text, and the server: each row as alone."""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import serving, testing
from peftjax.testing.measures import assert_close
from tests.equalities.models import MODELS, VOCABULARY

IDS = jnp.asarray(np.random.default_rng(0).integers(3, VOCABULARY, (5, 6)), jnp.int32)
MASK = np.array([[1] * 6, [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1] * 6, [0] * 5 + [1]])
SLOTS = np.array([1, 2, 0, 2, 1])


def _prompt(length, model):
    return peftjax.prompt_tuning(num_virtual_tokens=length)


def _p_tuning(length, model):
    return peftjax.p_tuning(num_virtual_tokens=length)


def _cores(model):
    return [path for path, site in model.sites.modules.items() if site.attention]


def _prefix(length, model):
    return peftjax.prefix_tuning(num_virtual_tokens=length, targets=_cores(model))


def _projected(length, model):
    return peftjax.prefix_tuning(num_virtual_tokens=length, projection=4, targets=_cores(model))


def _chain(length, model):
    lora = peftjax.lora(rank=length, alpha=length, targets='all-linear')
    return peftjax.chain(lora, _prefix(length, model))


FAMILIES = ('llama', 'bert', 'gpt2', 'roberta')
MAKERS = (_prompt, _p_tuning, _prefix, _projected, _chain)


def _members(model, make, lengths=(2, 4)):
    members = []
    for seed, length in enumerate(lengths):
        tx = make(length, model)
        adapter, frozen = tx.init(jax.random.key(seed), model)
        members.append((tx, testing.perturb(adapter, seed, 0.2), frozen))
    return members


def _cases():
    """Each way on one family, with a mask and without one in turns; the others are slow."""
    for number, (make, name) in enumerate(itertools.product(MAKERS, FAMILIES)):
        for masked in (True, False):
            turn = number % 4 == number // 4 % 4 and masked == bool(number // 4 % 2)
            yield pytest.param(name, make, masked, marks=() if turn else (pytest.mark.slow,))


@pytest.mark.parametrize(('name', 'make', 'masked'), list(_cases()))
def test_prompts_of_several_lengths_are_each_rows_own(name, make, masked):
    model = MODELS[name]()
    members = _members(model, make)
    bank, frozen = serving.bank(model, members)
    given = {'attention_mask': jnp.asarray(MASK)} if masked else {}
    mixed = serving.adapt(model)(bank, SLOTS, frozen, input_ids=IDS, **given)
    mixed = np.asarray(jax.tree.leaves(mixed)[0])
    for slot in range(3):
        rows = np.flatnonzero(slot == SLOTS)
        inputs = {key: value[rows] for key, value in {'input_ids': IDS, **given}.items()}
        if slot:
            tx, adapter, beside = members[slot - 1]
            alone = peftjax.adapt(model, tx)(adapter, beside, **inputs)
        else:
            alone = model.apply(model.params, **inputs)
        alone = np.asarray(jax.tree.leaves(alone)[0])
        real = MASK[rows] == 1 if masked and alone.ndim == 3 else np.ones(alone.shape[:-1], bool)
        assert_close(jnp.asarray(mixed[rows][real]), jnp.asarray(alone[real]), 1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize('make', [_p_tuning, _projected, _chain])
def test_text_of_a_mixed_batch_is_that_of_each_row(make):
    model = MODELS['llama']()
    members = _members(model, make)
    bank, frozen = serving.bank(model, members)
    written = serving.generator(model)(bank, SLOTS, frozen, IDS, MASK, max_new_tokens=5)
    for row, slot in enumerate(SLOTS):
        tx, adapter, beside = members[slot - 1] if slot else _no_adapter(model)
        alone = peftjax.generator(model, tx)(
            adapter, beside, IDS[row : row + 1], MASK[row : row + 1], max_new_tokens=5
        )
        np.testing.assert_array_equal(written[row], alone[0])


def _no_adapter(model):
    tx = peftjax.chain()
    return tx, (), tx.freeze(model, ())


def _requests(count, seed):
    draw = random.Random(seed)
    for _ in range(count):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 20))]
        yield serving.Request(prompt, draw.randrange(3), draw.randrange(1, 9))


@pytest.mark.sampled
@pytest.mark.parametrize(('make', 'name'), [(_prompt, 'gemma'), (_chain, 'llama')])
def test_the_server_answers_each_request_as_if_it_were_alone(name, make):
    model = MODELS[name]()
    members = _members(model, make)
    bank, frozen = serving.bank(model, members)
    requests = list(_requests(11, seed=1))
    serve = serving.server(model, rows=3, max_length=64, eos_token_id=7)
    answers = {answer.number: answer.tokens for answer in serve(bank, frozen, iter(requests))}
    assert sorted(answers) == list(range(11))
    for number, request in enumerate(requests):
        slot = request.slot
        tx, adapter, beside = members[slot - 1] if slot else _no_adapter(model)
        alone = np.asarray(
            peftjax.generator(model, tx)(
                adapter,
                beside,
                np.array([request.prompt]),
                max_new_tokens=request.max_new_tokens,
                eos_token_id=7,
            )
        )[0].tolist()
        end = alone.index(7) + 1 if 7 in alone else len(alone)
        assert answers[number].tolist() == alone[:end]


def test_draws_of_a_request_do_not_depend_on_the_others():
    model = MODELS['llama']()
    bank, frozen = serving.bank(model, _members(model, _prefix))
    sampling = peftjax.Sampling(temperature=1.0)
    few = serving.server(model, rows=1, max_length=64, sampling=sampling)
    many = serving.server(model, rows=4, max_length=64, sampling=sampling)
    requests = list(_requests(6, seed=2))
    one, same, other = (
        {each.number: each.tokens.tolist() for each in serve(bank, frozen, requests, key)}
        for serve, key in (
            (few, jax.random.key(3)),
            (many, jax.random.key(3)),
            (many, jax.random.key(4)),
        )
    )
    assert one == same != other
    with pytest.raises(ValueError, match='needs a key; give key='):
        few(bank, frozen, requests)


def test_requests_are_taken_when_rows_are_free():
    model = MODELS['llama']()
    bank, frozen = serving.bank(model, _members(model, _prefix))
    taken = []

    def coming():
        for number in itertools.count():
            taken.append(number)
            yield serving.Request([5, 6], 1, 2)

    answers = serving.server(model, rows=2, max_length=32)(bank, frozen, coming())
    next(answers)
    assert taken == [0, 1]


def test_rows_at_work_do_not_wait_for_requests_to_come():
    """A user sends the next request when the last one is answered."""
    model = MODELS['llama']()
    bank, frozen = serving.bank(model, _members(model, _prefix))
    answered = []

    def coming():
        for number in range(3):
            while len(answered) < number:
                yield None
            yield serving.Request([5, 6], 1, 2)

    for answer in serving.server(model, rows=2, max_length=32)(bank, frozen, coming()):
        answered.append(answer.number)
    assert answered == [0, 1, 2]


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (
            serving.Request([], 1, 2),
            'prompt length 0 and max_new_tokens=2: each must be at least 1',
        ),
        (serving.Request([5], 1, 0), 'max_new_tokens=0: each must be at least 1'),
        (
            serving.Request([5], 1, 30),
            '20 places before the answer (4 virtual tokens) and 30 for it',
        ),
        (serving.Request([5], 9, 2), 'slot 9 holds no adapter'),
    ],
)
def test_a_request_that_is_refused_costs_no_other(wrong, message):
    model = MODELS['llama']()
    bank, frozen = serving.bank(model, _members(model, _prefix))
    right = serving.Request([5, 6], 1, 3)
    serve = serving.server(model, rows=2, max_length=32)
    answers = {each.number: each for each in serve(bank, frozen, [right, wrong, right])}
    assert message in answers[1].refused and not len(answers[1].tokens)
    assert answers[0].tokens.tolist() == answers[2].tokens.tolist() and not answers[0].refused


def test_what_cannot_be_served_is_refused():
    model = MODELS['llama']()
    with pytest.raises(ValueError, match='rows must be at least 1'):
        serving.server(model, rows=0, max_length=8)
    with pytest.raises(ValueError, match='write max_prompt=<tokens of the longest prompt>'):
        serving.server(MODELS['t5'](), rows=1, max_length=8)
    for name in ('llama', 'whisper'):
        with pytest.raises(ValueError, match='max_prompt=8 is for an encoder of tokens'):
            serving.server(MODELS[name](), rows=1, max_length=8, max_prompt=8)
    with pytest.raises(ValueError, match='max_prompt must be at least 1, got 0'):
        serving.server(MODELS['t5'](), rows=1, max_length=8, max_prompt=0)
    gated = peftjax.gated(peftjax.lora(rank=2, targets='all-linear'))
    member = (gated, *gated.init(jax.random.key(0), model))
    bank, frozen = serving.bank(model, [member])
    with pytest.raises(ValueError, match='reads whole examples'):
        serving.server(model, rows=1, max_length=32)(bank, frozen, [])
    kept = peftjax.prompt_tuning(num_virtual_tokens=2, keep_virtual=True)
    with pytest.raises(ValueError, match='write keep_virtual=False'):
        serving.bank(model, [(kept, *kept.init(jax.random.key(0), model))])
    lstm = [peftjax.p_tuning(num_virtual_tokens=n, encoder='lstm') for n in (2, 3)]
    with pytest.raises(ValueError, match='may differ only in numbers, ranks and lengths'):
        serving.bank(model, [(tx, *tx.init(jax.random.key(0), model)) for tx in lstm])


def test_a_bank_on_a_sharded_base():
    model = MODELS['llama']()
    tx = peftjax.lora(rank=2, targets='all-linear')
    members = _members(model, lambda length, model: tx)
    bank, frozen = serving.bank(model, members)
    predict = serving.adapt(model)
    expected = predict(bank, SLOTS[:4], frozen, input_ids=IDS[:4])
    mesh = peftjax.make_mesh(fsdp=4, tensor=2)
    placed = jax.device_put(frozen, peftjax.frozen_shardings(frozen, model, mesh))
    found = predict(bank, SLOTS[:4], placed, input_ids=IDS[:4])
    assert_close(found, expected, 1e-5)
    same = serving.put(model, bank, placed, 1, members[0], donate=True)
    assert_close(predict(same, SLOTS[:4], placed, input_ids=IDS[:4]), expected, 1e-5)
