"""What OFT, BOFT and RandLoRA promise besides the contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.methods.low_rank import randlora
from peftjax.methods.orthogonal.rotations import cayley, skew
from tests.algebra import moved

WIDE = {'kernel': jnp.asarray(np.random.default_rng(0).normal(size=(16, 5)), jnp.float32)}


@functools.cache
def wide():
    return peftjax.wrap(lambda params, x: x @ params['kernel'], WIDE, {'x': jnp.ones((2, 16))})


def _merged(tx):
    """The kernel under an adapter that has moved."""
    return tx.merge(*moved(tx, wide(), size=0.3))['kernel']


@pytest.mark.parametrize('factors', [1, 2, 3])
def test_boft_keeps_lengths_and_angles_between_columns(factors):
    tx = peftjax.boft(block_size=4, factors=factors, scale=False, targets='kernel')
    merged = _merged(tx)
    np.testing.assert_allclose(
        merged.T @ merged, WIDE['kernel'].T @ WIDE['kernel'], rtol=2e-4, atol=2e-4
    )


def test_each_factor_of_boft_doubles_its_reach():
    """How many inputs a first output of `R` depends on: one block, two, four."""
    reach = []
    for factors in (1, 2, 3):
        tx = peftjax.boft(block_size=4, factors=factors, scale=False, targets='kernel')
        model = peftjax.wrap(wide().apply, {'kernel': jnp.eye(16)}, {'x': jnp.ones((2, 16))})
        rotation = tx.merge(*moved(tx, model, size=0.3))['kernel']
        reach.append(int((jnp.abs(rotation[0]) > 1e-9).sum()))
    assert reach == [4, 8, 16]


def test_a_bounded_oft_moves_no_further_but_still_learns():
    free = peftjax.oft(block_size=4, targets='kernel')
    bound = peftjax.oft(block_size=4, eps=0.1, targets='kernel')
    adapter, _ = moved(free, wide(), size=0.3)
    of = {tx: tx.freeze(wide(), adapter) for tx in (free, bound)}
    moves = [
        jnp.linalg.norm(tx.merge(adapter, frozen)['kernel'] - WIDE['kernel'])
        for tx, frozen in of.items()
    ]
    # (I - Q)(I + Q)^-1 - I is -2 Q up to squares, and |Q_i| is at most 0.1 / 2 in four blocks.
    assert moves[1] <= 0.11 * jnp.linalg.norm(WIDE['kernel']) < moves[0]
    predict = peftjax.adapt(wide(), bound)
    gradient = jax.grad(lambda a: predict(a, of[bound], x=jnp.ones((2, 16))).sum())(adapter)
    assert jnp.abs(gradient['kernel']['q']).min() > 0
    small = jax.tree.map(lambda leaf: 0.01 * leaf, adapter)
    np.testing.assert_array_equal(*(tx.merge(small, frozen)['kernel'] for tx, frozen in of.items()))


def test_the_series_nears_the_inverse_from_term_to_term():
    skewed = skew(0.05 * jnp.asarray(np.random.default_rng(1).normal(size=(3, 6))), 4)
    errors = [float(jnp.abs(cayley(skewed, terms) - cayley(skewed)).max()) for terms in (3, 5, 7)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_randloras_change_has_full_rank():
    tx = peftjax.randlora(rank=2, targets='kernel')
    assert np.linalg.matrix_rank(_merged(tx) - WIDE['kernel']) == 5


def test_randloras_bases_have_variance_one_and_as_many_zeros_as_asked_for():
    draws = randlora._drawn(0, (4, 64), (16, 128, 4), 3)
    for base in (*randlora._drawn(0, (4, 64), (16, 128, 4), None), *draws):
        assert abs(base.std() - 1) < 0.1
    assert abs((draws[1] == 0).mean() - 2 / 3) < 0.02


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: peftjax.boft(block_size=3, factors=2, targets='kernel'), 'block_size=4'),
        (lambda: peftjax.oft(block_size=4, neumann_terms=2, targets='kernel'), 'at least 3'),
        (lambda: peftjax.oft(block_size=4, eps=0.0, targets='kernel'), 'eps=None'),
        (lambda: peftjax.randlora(rank=2, sparsity=0.5, targets='kernel'), 'at least 1'),
        (
            lambda: peftjax.boft(block_size=8, factors=3, targets='kernel').init(
                jax.random.key(0), wide()
            ),
            r"32 does not divide the input size 16 of 'kernel' \(16, 5\) float32",
        ),
        (
            lambda: peftjax.randlora(
                rank=2,
                bases={'kernel': (np.ones((2, 4)), np.ones((3, 16, 2)))},
                targets='kernel',
            ).init(jax.random.key(0), wide()),
            r"of 'kernel' do not fit its matrix \[16, 5\]; they must be \(2, 5\)",
        ),
    ],
)
def test_wrong_arguments_say_what_to_write(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize('size', [1, 2, 5, 32])
def test_the_rotation_and_its_slope_are_those_of_the_inverse(size):
    random = np.random.default_rng(0)
    triangle = jnp.asarray(random.normal(size=(3, size * (size - 1) // 2)), jnp.float32)
    skewed = skew(triangle, size)

    def by_solving(skewed):
        eye = jnp.eye(size)[None]
        return jnp.linalg.solve(eye + skewed, eye - skewed)

    direction = jnp.asarray(random.normal(size=skewed.shape), jnp.float32)
    found, slope = jax.jvp(cayley, (skewed,), (direction,))
    expected, expected_slope = jax.jvp(by_solving, (skewed,), (direction,))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-4)
