"""Mathematics and refusals of the methods that act on activations, and of (IA)³."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.core.tokens import Tokens
from peftjax.methods.bottleneck.compacter import _product
from peftjax.methods.reft.positions import edit_at, parse
from peftjax.methods.reft.reft import orthonormal
from tests.algebra import mlp


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('shapes', [((3, 1), (1, 4)), ((3, 4), None), ((6, 4), None)])
def test_compacters_product_is_that_of_the_sum_of_kronecker_products(shapes):
    rule, left = _random(2, 2, 2), _random(2, *shapes[0], seed=1)
    right = None if shapes[1] is None else _random(2, *shapes[1], seed=2)
    leaves = {'up_rule': rule, 'up_left': left, 'up_right': right}
    x = _random(5, 2 * left.shape[1], seed=3)
    terms = left if right is None else left @ right
    matrix = sum(np.kron(rule[i], terms[i]) for i in range(2))
    np.testing.assert_allclose(_product(x, leaves, 'up'), x @ matrix, rtol=1e-4, atol=1e-5)


def test_lorefts_projection_isorthonormal_and_leavesorthonormal_matrices():
    q = orthonormal(_random(6, 3))
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(orthonormal(q), q, atol=1e-6)


def test_reft_edits_first_and_last_tokens_and_no_padding():
    h = _random(3, 6, 4)
    places, units = parse('f2+l1', tied=False), {end: {'by': 1.0} for end in ('first', 'last')}
    mask = jnp.asarray([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    edited = edit_at(places, lambda unit, states: states + unit['by'], units, h, Tokens(mask == 1))
    changed = np.asarray(jnp.any(edited != h, axis=-1)).astype(int)
    expected = [[1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(changed, expected)
    blind = edit_at(places, lambda unit, states: states + unit['by'], units, h, Tokens())
    changed = np.asarray(jnp.any(blind != h, axis=-1)).astype(int)
    np.testing.assert_array_equal(changed, [[1, 1, 0, 0, 0, 1]] * 3)


def test_ia3_scales_the_bias_with_the_output():
    tx = peftjax.ia3(targets=r'hidden')
    params = jax.tree.map(lambda leaf: leaf + 1.0, mlp().params)
    ones, frozen = tx.init(jax.random.key(0), mlp().replace(params=params))
    adapter = jax.tree.map(lambda leaf: 2.0 * leaf, ones)
    merged = tx.merge(adapter, frozen)
    np.testing.assert_allclose(merged['hidden']['bias'], 2 * params['hidden']['bias'])
    x = _random(5, 4)
    found = peftjax.adapt(mlp(), tx)(adapter, frozen, x)
    np.testing.assert_allclose(found, mlp().apply(merged, x), rtol=1e-5)


def test_a_weight_method_cannot_follow_a_gated_one():
    gate = peftjax.gated(peftjax.lora(rank=1, targets=r'hidden'))
    with pytest.raises(ValueError, match='write the later one earlier'):
        peftjax.chain(gate, peftjax.lora(rank=1, targets=r'hidden')).init(jax.random.key(0), mlp())


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda: peftjax.bottleneck(size=0, targets=r'hidden'), 'size'),
        (lambda: peftjax.bottleneck(size=1, targets=r'hidden', init='he'), 'houlsby'),
        (lambda: peftjax.bottleneck(size=1, targets=r'hidden', activation='elu'), 'swish'),
        (lambda: peftjax.bottleneck(size=1, targets=r'hidden', scale='channel'), 'learned'),
        (
            lambda: peftjax.bottleneck(
                size=1,
                targets=r'hidden',
                reads='here',  # pyright: ignore[reportArgumentType] wrong on purpose
            ),
            'after',
        ),
        (lambda: peftjax.pfeiffer(size=1, targets=r'hidden'), 'argument 2'),
        (lambda: peftjax.compacter(size=3, terms=2, targets=r'hidden'), 'multiple of terms'),
        (lambda: peftjax.compacter(size=3, terms=3, targets=r'hidden'), 'does not divide'),
        (lambda: peftjax.ia3(targets=r'hidden', feedforward=r'.*'), 'both match'),
        (lambda: peftjax.loreft(rank=9, targets=r'hidden'), 'at most rank=8'),
        (lambda: peftjax.loreft(rank=1, positions='first', targets=r'hidden'), 'f3'),
        (lambda: peftjax.gated(peftjax.bottleneck(size=1, targets=r'hidden')), 'otherwise'),
    ],
)
def test_refusals_say_what_to_write(make, words):
    with pytest.raises(ValueError, match=words):
        make().init(jax.random.key(0), mlp())
