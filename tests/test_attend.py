"""Plain attention, forward and backward, against its definition in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.core.masks import Mask
from peftjax.models import plain
from peftjax.models.attend import attend
from peftjax.models.attention import AttentionCore
from tests.attention import (
    BATCH,
    HEADS,
    SHARED,
    Case,
    attended,
    right_padded,
    seeing,
    seen,
    structures,
)
from tests.linen import applied

QUERIES = 11
_STRUCTURES = structures(QUERIES)
_BIAS = np.random.default_rng(2).normal(size=(BATCH, HEADS, QUERIES, QUERIES)).astype(np.float32)
_CAUSAL = Mask(causal=True)
CASES = _STRUCTURES | {
    'behind a cache': Case(
        3,
        9,
        Mask(causal=True, offset=jnp.int32(4), valid=jnp.arange(9)[None] != 2),
    ),
    'behind a cache, padded, with a window': Case(
        3,
        9,
        Mask(
            causal=True,
            window=4,
            offset=jnp.int32(5),
            valid=jnp.arange(9)[None] != jnp.array([[3], [4]]),
        ),
    ),
    'bounded': Case(QUERIES, QUERIES, _CAUSAL, softcap=0.7),
    'bias': Case(QUERIES, QUERIES, _CAUSAL, bias=_BIAS),
    'one bias for all rows': Case(QUERIES, QUERIES, _CAUSAL, bias=_BIAS[:1]),
    'a bias of keys': Case(QUERIES, QUERIES, _CAUSAL, bias=_BIAS[:, :1, :1]),
    'bounded with a bias': Case(QUERIES, QUERIES, Mask(), bias=_BIAS, softcap=0.7),
    'a key-value head for each head': Case(QUERIES, QUERIES, _CAUSAL, shared=HEADS),
    'one key-value head': Case(QUERIES, QUERIES, _CAUSAL, shared=1),
}


def close(found, expected, tolerance: float):
    """Within `tolerance` of the largest expected value."""
    expected = np.asarray(expected)
    scale = np.abs(expected).max(initial=1e-3)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, 0, tolerance * scale)


def follows_its_definition(case, function, dtype, tolerance):
    """`function(query, key, value, bias)` and its slope along a direction."""
    *given, slope = case.operands(dtype)
    operands = [*given, *([] if case.bias is None else [jnp.asarray(case.bias)])]
    result, pull = jax.vjp(function, *operands)
    exact = [np.asarray(x, np.float64) for x in operands]
    weight, sees = np.asarray(slope, np.float64), seen(case)

    def definition(*arrays):
        query, key, value, *bias = arrays
        return attended(case, sees, query, key, value, bias[0] if bias else None)

    rows = seeing(case)
    close(np.asarray(result, np.float64) * rows, definition(*exact) * rows, tolerance)
    gradients = pull(slope)
    for index, gradient in enumerate(gradients):
        assert (gradient.shape, gradient.dtype) == (operands[index].shape, operands[index].dtype)
        for seed in range(3):
            direction = np.random.default_rng(seed).normal(size=exact[index].shape)

            def moved(step, index=index, direction=direction):
                arrays = [*exact]
                arrays[index] = arrays[index] + step * direction
                return (definition(*arrays) * weight).sum()

            expected = (moved(1e-4) - moved(-1e-4)) / 2e-4
            along = np.asarray(gradient, np.float64) * direction
            # The error of a sum is that of its terms, however they cancel.
            assert abs(along.sum() - expected) <= tolerance * np.sqrt((along**2).sum()) * 3


@pytest.mark.sampled
@pytest.mark.parametrize('block', [plain.BLOCK, 4], ids=['at once', 'in blocks'])
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_attention_and_its_gradients_follow_their_definition(case, block, monkeypatch):
    monkeypatch.setattr(plain, 'BLOCK', block)  # of 11 queries the last block is a short one

    def function(query, key, value, *bias):
        return attend(
            query,
            key,
            value,
            case.mask,
            bias=bias[0] if bias else None,
            softcap=case.softcap,
            implementation='plain',
        )

    follows_its_definition(case, function, jnp.float32, 3e-6)


def test_a_row_longer_than_a_block_attends_as_it_should():
    case = Case(300, 300, Mask(causal=True, window=40, valid=jnp.asarray(right_padded(300))))
    query, key, value, _ = case.operands()
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    expected = attended(case, seen(case), q, k, v, None)
    close(attend(query, key, value, case.mask)[0], expected[0], 3e-6)


def test_a_query_that_sees_nothing_gets_the_mean_and_moves_nothing_but_values():
    case = Case(3, 5, Mask(valid=jnp.zeros((1, 5), bool)))
    query, key, value, _ = case.operands()
    result, pull = jax.vjp(functools.partial(attend, mask=case.mask), query, key, value)
    mean = jnp.repeat(value.mean(axis=1, keepdims=True), HEADS // SHARED, axis=2)
    np.testing.assert_allclose(result, jnp.broadcast_to(mean, result.shape), atol=1e-6)
    d_query, d_key, d_value = pull(jnp.ones_like(result))
    assert not d_query.any() and not d_key.any() and d_value.all()


def test_dropped_probabilities_are_dropped_in_the_backward_pass_too():
    case = Case(QUERIES, QUERIES, _CAUSAL)
    query, key, value, slope = case.operands()
    random = jax.random.key(3)
    kept = jax.random.bernoulli(random, 0.7, (BATCH, HEADS, QUERIES, QUERIES))

    def by_hand(query, key, value):
        key, value = (jnp.repeat(x, HEADS // SHARED, axis=2) for x in (key, value))
        scores = jnp.einsum('btnh,bsnh->bnts', query, key) / 4
        scores = jnp.where(jnp.asarray(seen(case)), scores, -1e30)
        weights = jnp.where(kept, jax.nn.softmax(scores) / 0.7, 0.0)
        return jnp.einsum('bnts,bsnh->btnh', weights, value)

    def function(query, key, value):
        return attend(query, key, value, _CAUSAL, dropout=(0.3, random))

    pairs = [jax.vjp(each, query, key, value) for each in (function, by_hand)]
    (result, pull), (expected, pull_expected) = pairs
    close(result, expected, 2e-6)
    for found, wanted in zip(pull(slope), pull_expected(slope), strict=True):
        close(found, wanted, 2e-6)


def test_gradients_have_gradients():
    """A penalty on the slope of a loss trains through the backward pass that is written by hand."""
    case = Case(QUERIES, QUERIES, _CAUSAL, softcap=0.7)
    query, key, value, slope = case.operands()

    def steepness(function):
        gradient = jax.grad(lambda x: (function(x, key, value) * slope).sum())
        return jax.grad(lambda x: (gradient(x) ** 2).sum())(query)

    def by_hand(query, key, value):
        key, value = (jnp.repeat(x, HEADS // SHARED, axis=2) for x in (key, value))
        scores = 0.7 * jnp.tanh(jnp.einsum('btnh,bsnh->bnts', query, key) / 4 / 0.7)
        scores = jnp.where(jnp.asarray(seen(case)), scores, -1e30)
        return jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(scores), value)

    found = steepness(functools.partial(attend, mask=_CAUSAL, softcap=0.7))
    close(found, steepness(by_hand), 1e-5)


def test_masks_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match='needs causal=True'):
        Mask(window=3)
    with pytest.raises(ValueError, match='window=0'):
        Mask(causal=True, window=0)
    with pytest.raises(ValueError, match='prefix=-1'):
        Mask().behind(-1)


@pytest.mark.parametrize(
    'shape', [(), (4, 5), (HEADS, 4, 5), (1, 1, 5, 4), (BATCH, 2, 4, 5), (1, 1, 1, 1, 1)]
)
def test_a_bias_of_another_shape_than_the_scores_is_refused(shape):
    query, key, value, _ = Case(4, 5, Mask()).operands()
    scores = f'{BATCH}, {HEADS}, 4, 5'
    for call in (attend, functools.partial(applied, AttentionCore(), {})):
        with pytest.raises(ValueError, match=re.escape(f'{shape}, but the scores')) as error:
            call(query, key, value, bias=jnp.zeros(shape))
        assert scores in str(error.value) and 'bias[None, None]' in str(error.value)


def test_a_mask_says_what_its_docstring_says():
    for name, case in CASES.items():
        dense = case.mask.dense(case.queries, case.keys)
        expected = seen(case)
        found = np.ones_like(expected) if dense is None else np.broadcast_to(dense, expected.shape)
        np.testing.assert_array_equal(found, expected, name)


@pytest.mark.parametrize('queries', [11, 300], ids=['a block', 'blocks'])
def test_a_bias_in_parts_is_the_bias_of_all_keys(queries):
    """Each part has the rows it needs: the parts are never held as one array."""
    draw = np.random.default_rng(0).normal
    query, key = (jnp.asarray(draw(size=(2, n, HEADS, 8)), jnp.float32) for n in (queries, 9))
    shapes = [(2, HEADS, queries, 3), (1, HEADS, queries, 5), (1, 1, 1, 1)]
    parts = tuple(jnp.asarray(draw(size=shape), jnp.float32) for shape in shapes)

    def whole(parts):
        rows = (2, HEADS, queries)
        return jnp.concatenate([jnp.broadcast_to(x, (*rows, x.shape[3])) for x in parts], axis=3)

    def loss(parts, join):
        return (attend(query, key, key, Mask(prefix=3), bias=join(parts)) ** 2).sum()

    with jax.default_matmul_precision('highest'):
        found, expected = (
            jax.jit(jax.value_and_grad(functools.partial(loss, join=join)))(parts)
            for join in (lambda parts: parts, whole)
        )
        jax.tree.map(lambda x, y: close(x, y, 1e-5), found, expected)
        runs = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), parts)
        together = jax.vmap(functools.partial(loss, join=lambda parts: parts))(runs)
        doubled = loss(jax.tree.map(lambda x: 2 * x, parts), whole)
    close(together, jnp.stack([expected[0], doubled]), 1e-5)


@pytest.mark.parametrize('shapes', [[(1, 1, 3, 2), (1, 1, 3, 2)], [(1, 1, 3, 2), (3,)]])
def test_parts_of_a_bias_that_are_not_those_of_the_keys_are_refused(shapes):
    call = jnp.ones((1, 3, 2, 8))
    with pytest.raises(ValueError, match='which the last add up to the keys') as error:
        attend(call, call, call, bias=tuple(map(jnp.zeros, shapes)))
    assert str(shapes) in str(error.value) and '(1, 2, 3, 3)' in str(error.value)
