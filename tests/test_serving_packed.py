"""Packed rows whose texts have an adapter each: each text is computed as alone with its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import serving, testing
from peftjax.testing.measures import assert_close
from tests.equalities.models import MODELS, VOCABULARY
from tests.rows import METHODS

MODEL = MODELS['llama']()
WEIGHTS = r'.*/(q_proj|down_proj)'
IDS = jnp.asarray(np.random.default_rng(0).integers(3, VOCABULARY, (2, 12)), jnp.int32)
# Two texts of 4 and 8 tokens, and one of 12 or two of 6: blocks of two tokens.
STARTS = ((0, 4, 12), (0, 6, 12))
TEXTS = ((2, 1), (0, 2))
SLOTS = np.array([[2, 2, 1, 1, 1, 1], [0, 0, 0, 2, 2, 2]])
SEGMENTS = jnp.array([[1] * 4 + [2] * 8, [1] * 6 + [2] * 6])
ON_WEIGHTS = (
    *('lora', 'dora', 'adalora', 'loha', 'hira', 'hra', 'oft', 'c3a', 'miss', 'lokr', 'vera'),
    *('fourierft', 'shira', 'lora-fa', 'gralora', 'boft', 'randlora', 'road', 'vb-lora', 'delora'),
)


def _members(make, model=MODEL):
    members = []
    for seed in range(2):
        tx = make(seed)
        adapter, frozen = tx.init(jax.random.key(seed), model)
        members.append((tx, testing.perturb(adapter, seed, 0.1), frozen))
    return members


def _alone(model, members, slot, ids):
    if not slot:
        return model.apply(model.params, input_ids=ids)
    tx, adapter, beside = members[slot - 1]
    return peftjax.adapt(model, tx)(adapter, beside, input_ids=ids)


def _check(members, prepared=True, model=MODEL, of=lambda outputs: outputs):
    bank, frozen = serving.bank(model, members, prepared=prepared)
    predict = serving.adapt(model)
    mixed = of(predict(bank, SLOTS, frozen, input_ids=IDS, segment_ids=SEGMENTS))
    for row, (starts, slots) in enumerate(zip(STARTS, TEXTS, strict=True)):
        for start, end, slot in zip(starts, starts[1:], slots, strict=False):
            alone = of(_alone(model, members, slot, IDS[row : row + 1, start:end]))
            assert_close(mixed[row : row + 1, start:end], alone, 1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize('method', ON_WEIGHTS)
def test_a_text_of_a_packed_row_is_computed_with_its_own_adapter(method):
    tx = METHODS[method].maker(MODEL)(WEIGHTS)
    _check(_members(lambda _: tx))


@pytest.mark.parametrize('prepared', [True, False])
def test_other_ranks_and_scales(prepared):
    members = _members(lambda seed: peftjax.lora(rank=1 + seed, alpha=2.0, targets=WEIGHTS))
    _check(members, prepared)


def test_an_embedding_and_its_head():
    _check(_members(lambda _: peftjax.lora(rank=2, targets=(r'embed_tokens', r'.*/up_proj'))))


def test_gradients_reach_the_adapter_of_each_block_alone():
    members = _members(lambda _: peftjax.lora(rank=2, targets=WEIGHTS))
    bank, frozen = serving.bank(MODEL, members, prepared=False)
    predict = serving.adapt(MODEL)

    def loss(adapters):
        outputs = predict(
            bank.replace(adapters=adapters), SLOTS, frozen, input_ids=IDS, segment_ids=SEGMENTS
        )
        return (outputs[0, :4] ** 2).mean()

    for leaf in jax.tree.leaves(jax.grad(loss)(bank.adapters)):
        assert not leaf[:2].any() and np.abs(leaf[2]).max() > 1e-6


def test_a_block_costs_the_products_of_a_row():
    members = _members(lambda _: peftjax.lora(rank=2, targets=WEIGHTS))
    bank, frozen = serving.bank(MODEL, members)
    predict = serving.adapt(MODEL)

    def flops(slots):
        lowered = jax.jit(predict).lower(bank, slots, frozen, input_ids=IDS)
        costs = lowered.compile().cost_analysis()
        assert costs is not None
        return costs['flops']

    assert flops(SLOTS) <= 1.01 * flops(SLOTS[:, 0])


def test_a_slot_without_an_adapter_makes_its_row_nan():
    members = _members(lambda _: peftjax.lora(rank=2, targets=WEIGHTS))
    bank, frozen = serving.bank(MODEL, members, slots=4)
    slots = jnp.asarray(SLOTS).at[1, 0].set(3)
    outputs = jax.jit(serving.adapt(MODEL))(bank, slots, frozen, input_ids=IDS)
    assert np.isfinite(outputs[0]).all() and np.isnan(outputs[1]).all()


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: peftjax.select(r'norm/scale'), 'replaces .*norm/scale'),
        (lambda: peftjax.bottleneck(size=2, targets=r'.*/mlp'), 'acts on several tokens together'),
        (lambda: peftjax.prompt_tuning(num_virtual_tokens=2), 'acts on several tokens together'),
    ],
)
def test_methods_on_more_than_tokens_are_refused(make, message):
    bank, frozen = serving.bank(MODEL, _members(lambda _: make()))
    with pytest.raises(ValueError, match=message):
        serving.adapt(MODEL)(bank, SLOTS, frozen, input_ids=IDS)


def test_blocks_of_unequal_lengths_and_unknown_tokens_are_refused():
    members = _members(lambda _: peftjax.lora(rank=2, targets=WEIGHTS))
    bank, frozen = serving.bank(MODEL, members)
    predict = serving.adapt(MODEL)
    with pytest.raises(ValueError, match='12 tokens are not 5 blocks .* pad them to 15'):
        predict(bank, np.ones((2, 5), int), frozen, input_ids=IDS)
    mlp = testing.tiny_mlp()
    bank, frozen = serving.bank(
        mlp, _members(lambda _: peftjax.lora(rank=2, targets='hidden'), mlp)
    )
    with pytest.raises(ValueError, match=r'Roles\(token_ids'):
        serving.adapt(mlp)(bank, np.ones((3, 2), int), frozen, jnp.ones((3, 4)))


def test_a_weight_that_sees_few_of_the_tokens_is_refused():
    bert = MODELS['bert']()
    bank, frozen = serving.bank(
        bert, _members(lambda _: peftjax.lora(rank=2, targets=r'pooler.*'), bert)
    )
    with pytest.raises(ValueError, match='pooler.* a row of 12 tokens'):
        serving.adapt(bert)(bank, SLOTS, frozen, input_ids=IDS)
