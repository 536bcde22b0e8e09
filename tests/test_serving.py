"""Mixed batches: each row is computed as alone with its own adapter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

import peftjax
from peftjax import serving, testing
from peftjax.plan import counting
from peftjax.testing.measures import assert_close
from tests.compiled import lowered
from tests.contract_models import IDS, MODELS
from tests.rows import METHODS

# Prompts of several lengths need a mask and positions, which the models of the contract lack: see
# test_serving_prompts.py.
ON_CALLS = {name for name in METHODS if 'p-tuning' in name or 'prompt tuning' in name}
SLOTS = np.array([2, 0, 1, 1, 3, 0, 2, 3])
MLP = testing.tiny_mlp()
X = jax.random.normal(jax.random.key(9), (4, 4))


def _cases():
    """Every method on one form of model, a quarter of them by default; the other form is slow."""
    for number, name in enumerate(sorted(set(METHODS) - ON_CALLS)):
        for turn, form in enumerate(('linen looped', 'linen scanned')):
            marks = () if number % 2 == turn else (pytest.mark.slow,)
            yield pytest.param(name, form, marks=marks)


def _members(model, make, count=3, size=0.1):
    """`make(seed)` gives the transform of each."""
    members = []
    for seed in range(count):
        tx = make(seed)
        adapter, frozen = tx.init(jax.random.key(seed), model)
        members.append((tx, testing.perturb(adapter, seed, size), frozen))
    return members


@pytest.mark.sampled
@pytest.mark.parametrize(('method', 'form'), list(_cases()))
def test_a_mixed_batch_is_each_row_alone(method, form):
    model, row = MODELS[form](), METHODS[method]
    tx = row.maker(model)(row.targets)
    members = _members(model, lambda _: tx)
    bank, frozen = serving.bank(model, members)
    mixed = serving.adapt(model)(bank, SLOTS, frozen, ids=IDS)
    predict = peftjax.adapt(model, tx)
    for slot in range(4):
        rows = np.flatnonzero(slot == SLOTS)
        if slot:
            _, adapter, beside = members[slot - 1]
            alone = predict(adapter, beside, ids=IDS[rows])
        elif tx.rest is None:
            alone = model.apply(model.params, ids=IDS[rows])
        else:  # What is left of the base, and the part that the adapter starts from.
            alone = predict(*tx.init(jax.random.key(0), model), ids=IDS[rows])
        assert_close(mixed[rows], alone, 1e-5)


@functools.cache
def _ranks():
    def make(seed):
        rank = (1, 3, 2)[seed]
        lora = peftjax.lora(rank=rank, alpha=1.0 + seed, dropout=0.1 * seed, targets=r'.*/kernel')
        return peftjax.chain(lora, peftjax.select(r'out/bias'))

    return _members(MLP, make)


def test_adapters_of_other_ranks_and_scales_are_padded():
    members = _ranks()
    bank, frozen = serving.bank(MLP, members)
    assert bank.transform is members[1][0]
    mixed = serving.adapt(MLP)(bank, [3, 1, 2, 0], frozen, X)
    for row, slot in enumerate([3, 1, 2]):
        tx, adapter, beside = members[slot - 1]
        assert_close(mixed[row], peftjax.adapt(MLP, tx)(adapter, beside, X)[row], 1e-6)
    assert_close(mixed[3], MLP.apply(MLP.params, X)[3], 1e-6)


def test_another_adapter_in_a_slot_changes_no_bit_of_other_rows_and_compiles_nothing():
    members = _ranks()
    bank, frozen = serving.bank(MLP, members[:2], slots=5)
    predict = serving.adapt(MLP)
    slots = np.array([1, 2, 0, 1])
    before = predict(bank, slots, frozen, X)
    with lowered() as programs:
        swapped = serving.put(MLP, bank, frozen, 2, members[2])
        swapped = serving.put(MLP, swapped, frozen, 4, members[0])
        after = predict(swapped, slots, frozen, X)
        other = predict(swapped, np.array([4, 2, 0, 1]), frozen, X)
    assert not programs
    with lowered() as programs:
        predict(swapped, slots[:2], frozen, X[:2])
    assert programs  # The search finds what there is.
    others = np.array([0, 2, 3])
    np.testing.assert_array_equal(before[others], after[others])
    assert not np.allclose(before[1], after[1])
    np.testing.assert_array_equal(other[0], before[0])


@pytest.mark.parametrize('prepared', [True, False])
def test_gradients_are_those_of_each_adapter_alone(prepared):
    tx = peftjax.dora(rank=2, targets=r'hidden')
    members = _members(MLP, lambda _: tx, count=2)
    bank, frozen = serving.bank(MLP, members, prepared=prepared)
    bank = bank.replace(prepared=None)
    predict, alone = serving.adapt(MLP), peftjax.adapt(MLP, tx)

    def loss(adapters):
        outputs = predict(bank.replace(adapters=adapters), np.array([1, 2, 2, 0]), frozen, X)
        return (outputs**2).sum()

    def loss_alone(adapter, rows):
        return (alone(adapter, members[0][2], X[rows]) ** 2).sum()

    gradients = jax.jit(jax.grad(loss))(bank.adapters)
    for slot, rows in ((1, slice(0, 1)), (2, slice(1, 3))):
        expected = jax.grad(loss_alone)(members[slot - 1][1], rows)
        of_slot = jax.tree.map(lambda leaf, slot=slot: leaf[slot], gradients)
        jax.tree.map(lambda mine, theirs: assert_close(mine, theirs, 1e-5), of_slot, expected)
    assert all(not leaf[0].any() for leaf in jax.tree.leaves(gradients))


def test_a_quantised_base_serves_many():
    model = peftjax.quantize(MLP, 'int8', targets='hidden')
    tx = peftjax.lora(rank=2, targets=r'hidden')
    members = _members(model, lambda _: tx, count=2)
    bank, frozen = serving.bank(model, members)
    mixed = serving.adapt(model)(bank, [2, 1, 0, 1], frozen, X)
    for row, slot in enumerate((2, 1)):
        _, adapter, beside = members[slot - 1]
        assert_close(mixed[row], peftjax.adapt(model, tx)(adapter, beside, X)[row], 1e-6)


def test_dropout_is_each_rows_own():
    tx = peftjax.lora(rank=2, dropout=0.5, targets=r'hidden')
    members = _members(MLP, lambda _: tx, count=1)
    bank, frozen = serving.bank(MLP, members, prepared=False)
    predict, same = serving.adapt(MLP), jnp.tile(X[:1], (4, 1))
    noisy = predict(bank, [1, 1, 1, 0], frozen, same, adapter_key=jax.random.key(0))
    assert not np.allclose(noisy[0], noisy[1])
    np.testing.assert_allclose(noisy[3], MLP.apply(MLP.params, same)[3], rtol=1e-6)
    ready, frozen = serving.bank(MLP, members)
    with pytest.raises(ValueError, match=r'with adapter_key pass bank.replace\(prepared=None\)'):
        predict(ready, [1, 1, 1, 0], frozen, same, adapter_key=jax.random.key(0))


def test_an_adapter_takes_no_more_memory_than_its_size():
    tx = peftjax.lora(rank=3, targets=r'.*/kernel')
    bank, _ = serving.bank(MLP, transform=tx, slots=1001)
    one = sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(jax.random.key(0), MLP)[0]))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(bank)) < 1.2 * 1000 * one


@pytest.mark.parametrize(
    ('slots', 'message'),
    [
        ([0, 1, 2, 3], 'slot 3 holds no adapter; those that do are \\[1, 2\\]'),
        ([0, 1, 2, 9], 'slot 9 holds no adapter'),
        ([0, -1, 2, 1], 'slot -1 holds no adapter'),
        ([0, 1], r'is \[4, 4\], but slots names 2 rows'),
        ([0.0, 1.0, 2.0, 1.0], 'one whole number for each row'),
    ],
)
def test_wrong_slots_are_refused(slots, message):
    bank, frozen = serving.bank(MLP, _ranks()[:2], transform=_ranks()[1][0], slots=4)
    with pytest.raises(ValueError, match=message):
        serving.adapt(MLP)(bank, slots, frozen, X)


@pytest.mark.parametrize('slot', [3, 4, 99, -1])
def test_a_traced_slot_without_an_adapter_gives_neither_the_base_nor_another(slot):
    bank, frozen = serving.bank(MLP, _ranks()[:2], slots=5)
    outputs = jax.jit(lambda slots: serving.adapt(MLP)(bank, slots, frozen, X))(
        jnp.array([0, 1, slot, 2])
    )
    assert np.isnan(outputs[2]).all() and np.isfinite(outputs[np.array([0, 1, 3])]).all()


def test_other_adapters_in_a_prepared_bank_are_refused():
    tx = peftjax.dora(rank=2, targets=r'hidden')
    bank, frozen = serving.bank(MLP, _members(MLP, lambda _: tx, count=1))
    other = jax.tree.map(lambda leaf: 2 * leaf, bank.adapters)
    with pytest.raises(ValueError, match='holds arrays prepared from its adapters'):
        bank.replace(adapters=other)
    outputs = serving.adapt(MLP)(
        bank.replace(adapters=other, prepared=None), [1, 1, 1, 1], frozen, X
    )
    one = jax.tree.map(lambda leaf: leaf[1], other)
    alone = peftjax.adapt(MLP, tx)(one, tx.init(jax.random.key(0), MLP)[1], X)
    assert_close(outputs, alone, 1e-6)


def test_adapters_that_do_not_belong_together_are_refused():
    lora = peftjax.lora(rank=2, targets=r'hidden')
    members = _members(MLP, lambda _: lora, count=1)
    others = _members(MLP, lambda _: peftjax.dora(rank=2, targets=r'hidden'), count=1)
    with pytest.raises(ValueError, match='of one method, and may differ only in numbers'):
        serving.bank(MLP, members + others)
    wide = _members(MLP, lambda _: peftjax.lora(rank=3, targets=r'hidden'), count=1)
    with pytest.raises(ValueError, match=r'is \[4, 3\], but the bank holds \[4, 2\]'):
        serving.bank(MLP, wide, transform=lora)
    bank, frozen = serving.bank(MLP, members)
    with pytest.raises(ValueError, match='write 1 to 1, slot 0 is the base'):
        serving.put(MLP, bank, frozen, 0, members[0])
    elsewhere = MLP.replace(params=jax.tree.map(lambda leaf: leaf + 1, MLP.params))
    with pytest.raises(ValueError, match='made for another base model'):
        serving.put(MLP, bank, frozen, 1, (lora, *lora.init(jax.random.key(0), elsewhere)))
    starts = [peftjax.lora(rank=n, init='pissa', targets=r'hidden') for n in (1, 2)]
    with pytest.raises(ValueError, match='use a bank for each rank'):
        serving.bank(MLP, [(tx, *tx.init(jax.random.key(0), MLP)) for tx in starts])
    with pytest.raises(ValueError, match='are too few for the base and 1 adapters'):
        serving.bank(MLP, members, slots=1)
    with pytest.raises(ValueError, match='write transform=tx'):
        serving.bank(MLP)


def test_outputs_that_mix_rows_are_refused():
    model = peftjax.wrap(lambda params, x: (x @ params['w']).mean(), {'w': jnp.ones((4, 2))}, X)
    tx = peftjax.lora(rank=2, targets=r'w')
    bank, frozen = serving.bank(model, _members(model, lambda _: tx, count=1))
    with pytest.raises(ValueError, match='has no axis of rows'):
        serving.adapt(model)(bank, [0, 1, 1, 0], frozen, X)


def _products(function, *args):
    """FLOPs of matrix products of a program, without those whose results nothing reads."""
    program = jax.make_jaxpr(function)(*args).jaxpr
    return counting.products(partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[0])


@pytest.mark.sampled
@pytest.mark.parametrize('method', sorted(set(METHODS) - ON_CALLS - {'loftq'}))
def test_a_mixed_batch_costs_the_products_of_a_uniform_one(method):
    model, row = MODELS['linen looped'](), METHODS[method]
    tx = row.maker(model)(row.targets)
    (member,) = _members(model, lambda _: tx, count=1)
    bank, frozen = serving.bank(model, [member], slots=9)
    _, adapter, beside = member
    mixed = _products(lambda bank: serving.adapt(model)(bank, SLOTS % 2, frozen, IDS), bank)
    uniform = _products(lambda adapter: peftjax.adapt(model, tx)(adapter, beside, IDS), adapter)
    assert mixed <= 1.01 * uniform
