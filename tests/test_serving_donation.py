"""A bank that is given to the next one: which arrays are written, and which stay."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import serving, testing
from peftjax.serving import filling
from peftjax.serving.reading import Request
from tests.equalities.models import MODELS

# Wide enough for projections that slots share.
METHOD = {
    'lora': peftjax.lora(rank=2, targets=r'hidden/kernel'),
    'dora': peftjax.dora(rank=2, targets=r'hidden/kernel'),
    'vera': peftjax.vera(rank=32, targets=r'hidden/kernel'),
    'randlora': peftjax.randlora(rank=8, targets=r'hidden/kernel'),
    'ia3': peftjax.ia3(targets=r'hidden'),
    'bias': peftjax.select(r'hidden/bias'),
}
SHARED = {'vera': [True, True], 'randlora': [False, True, False]}


@functools.cache
def _wide():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(64, name='hidden')(x)

    x = jnp.ones((1, 64))
    roles = peftjax.Roles(other=('x',))
    return peftjax.wrap(Net(), Net().init(jax.random.key(0), x), {'x': x}, roles=roles)


def _members(tx, model, count=2):
    members = []
    for seed in range(count):
        adapter, frozen = tx.init(jax.random.key(0), model)
        members.append((tx, testing.perturb(adapter, seed, 0.1), frozen))
    return members


def _programs():
    return filling._placed._cache_size()  # pyright: ignore[reportAttributeAccessIssue] (of jit)


def _places(leaves):
    return [leaf.unsafe_buffer_pointer() for leaf in leaves]


def _assert_same(leaves, others):
    for one, other in zip(jax.tree.leaves(leaves), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('prepared', [True, False])
@pytest.mark.parametrize('name', METHOD)
def test_donate_writes_into_the_arrays_of_the_bank_and_into_no_others(name, prepared):
    tx, model = METHOD[name], _wide()
    members = _members(tx, model)
    bank, frozen = serving.bank(model, members, prepared=prepared)
    if name in SHARED:
        assert list(bank.shared) == SHARED[name]
    kept, given = filling._apart(bank.own, bank.shared)
    given = jax.tree.leaves((bank.replace(own=None, prepared=bank.prepared), given))
    places, programs = _places(given), _programs()
    copied = serving.put(model, bank, frozen, 1, members[1])
    others = [member[1:] for member in members], model.params, frozen, kept, copied
    before = jax.tree.map(np.array, others)
    written = serving.put(model, bank, frozen, 1, members[1], donate=True)
    assert _programs() == programs
    assert all(leaf.is_deleted() for leaf in given)
    now_kept, now = filling._apart(written.own, written.shared)
    now = jax.tree.leaves((written.replace(own=None, prepared=written.prepared), now))
    assert _places(now) == places
    assert all(one is other for one, other in zip(kept, now_kept, strict=True))
    _assert_same(others, before)
    _assert_same(written, copied)


def test_numbers_of_another_dtype_are_those_of_the_bank():
    tx, model = peftjax.dora(rank=2, alpha=0.7, targets=r'hidden/kernel'), _wide()
    _, (_, adapter, beside) = members = _members(tx, model)
    bank, frozen = serving.bank(model, members)
    # Rounded to float16, as a file may hold them, and the same numbers in float32.
    half = beside._replace(own=jax.tree.map(jnp.float16, beside.own))
    wide = beside._replace(own=jax.tree.map(jnp.float32, half.own))
    programs = _programs()
    banks = [serving.put(model, bank, frozen, 2, (tx, adapter, each)) for each in (half, wide)]
    assert _programs() == programs
    _assert_same(*banks)


def test_answers_that_are_still_to_come_need_the_bank_that_they_began_with():
    model = MODELS['llama']()
    tx = peftjax.lora(rank=2, targets='all-linear')
    members = _members(tx, model)
    bank, frozen = serving.bank(model, members)
    serve = serving.server(model, rows=1, max_length=32)
    requests = [Request([5, 6], 1, 2), Request([5], 2, 2)]
    answers = serve(bank, frozen, requests)
    first = next(answers)
    other = serving.put(model, bank, frozen, 1, members[1])
    assert [first.number, next(answers).number] == [0, 1]
    answers = serve(other, frozen, requests)
    next(answers)
    serving.put(model, other, frozen, 2, members[0], donate=True)
    with pytest.raises(RuntimeError, match='deleted'):
        next(answers)


@pytest.mark.parametrize('donate', [True, False])
def test_put_works_inside_of_a_program(donate):
    tx, model = METHOD['dora'], _wide()
    members = _members(tx, model)
    bank, frozen = serving.bank(model, members)
    expected = serving.put(model, bank, frozen, 1, members[1])
    put = functools.partial(serving.put, donate=donate)
    traced = jax.jit(lambda bank: put(model, bank, frozen, 1, members[1]))(bank)
    for one, other in zip(jax.tree.leaves(traced), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
