"""Losses of preferences against the formulas of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.train.losses import preference as losses

NUMBERS = st.floats(-30.0, -0.015625, width=32)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@given(st.lists(NUMBERS, min_size=4, max_size=4), st.floats(0.01, 2.0), st.floats(0.0, 0.4))
@settings(deadline=None, max_examples=40)
def test_losses_are_the_formulas_of_their_papers(numbers, beta, smoothing):
    c, r, c0, r0 = (np.asarray([each], np.float64) for each in numbers)
    chosen, rejected, *base = [jnp.asarray(each, jnp.float32) for each in (c, r, c0, r0)]
    four = chosen, rejected, base[0], base[1]
    h = (c - c0) - (r - r0)
    dpo = -(1 - smoothing) * np.log(sigmoid(beta * h)) - smoothing * np.log(sigmoid(-beta * h))
    expected = {
        'dpo': (losses.dpo_loss(*four, beta, smoothing), dpo),
        'ipo': (losses.ipo_loss(*four, beta), (h - 1 / (2 * beta)) ** 2),
        'simpo': (
            losses.simpo_loss(chosen, rejected, beta, 0.5),
            -np.log(sigmoid(beta * c - beta * r - 0.5)),
        ),
    }
    p, q = np.exp(c), np.exp(r)
    odds = np.log(p / (1 - p)) - np.log(q / (1 - q))
    expected['orpo'] = losses.orpo_loss(chosen, rejected, beta), -c - beta * np.log(sigmoid(odds))
    for name, (found, wanted) in expected.items():
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5, err_msg=name)


def test_kto_is_the_formula_of_its_paper_and_ignores_rows_without_weight():
    ratios, good = np.asarray([1.0, -2.0, 0.5]), np.asarray([True, False, False])
    far, weights = np.asarray([0.4, 0.8, 1e9]), np.asarray([1.0, 1.0, 0.0])
    point = losses.kto_reference_point(jnp.asarray(far, jnp.float32), weights.astype('f4'))
    assert float(point) == pytest.approx(0.6)
    found = losses.kto_loss(jnp.asarray(ratios, jnp.float32), good, point, 0.3, 1.5, 2.0)
    value = np.where(good, sigmoid(0.3 * (ratios - 0.6)), sigmoid(0.3 * (0.6 - ratios)))
    weight = np.where(good, 1.5, 2.0)
    np.testing.assert_allclose(found, weight - weight * value, rtol=1e-5)
    # A model nearer to the answers of other prompts than its reference is not negative.
    assert float(losses.kto_reference_point(jnp.asarray([-3.0]), jnp.ones(1))) == 0.0
    slope = jax.grad(lambda x: losses.kto_reference_point(x, jnp.ones(2)))(jnp.ones(2))
    assert slope.tolist() == [0.0, 0.0]


def test_equal_models_give_log_2_and_so_does_beta_near_0():
    c, r = jnp.asarray([-3.0, -9.0]), jnp.asarray([-8.0, -1.0])
    np.testing.assert_allclose(losses.dpo_loss(c, r, c, r, 0.7, 0.2), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.dpo_loss(c, r, r, c, 1e-7), np.log(2), rtol=1e-5)
    np.testing.assert_allclose(losses.simpo_loss(c, c, 2.0, 0.0), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.ipo_loss(c, r, c, r, 0.25), 4.0, rtol=1e-6)


def test_a_step_down_raises_the_chosen_answer_and_lowers_the_rejected_one():
    c, r, zero = jnp.asarray([-3.0]), jnp.asarray([-2.0]), jnp.asarray([-2.5])
    for loss in (
        lambda c, r: losses.dpo_loss(c, r, zero, zero),
        lambda c, r: losses.ipo_loss(c, r, zero, zero),
        losses.orpo_loss,
        losses.simpo_loss,
    ):
        up, down = jax.grad(lambda c, r, f=loss: f(c, r).sum(), argnums=(0, 1))(c, r)
        assert float(up[0]) < 0 < float(down[0])
    for good in (True, False):
        slope = jax.grad(
            lambda x, g=good: losses.kto_loss(x, np.asarray([g]), jnp.float32(0.0)).sum()
        )(c)
        assert (float(slope[0]) < 0) is good


@pytest.mark.parametrize('value', [0.0, -1e-9, -100.0])
def test_odds_stay_finite_at_the_ends(value):
    found, slope = jax.value_and_grad(lambda x: losses.log_odds(x).sum())(jnp.asarray([value]))
    assert np.isfinite(found)
    assert np.isfinite(slope).all()
