"""Methods of products and blocks: special cases, and the errors of sizes that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from tests.algebra import mlp, moved


def _change(transform, adapter):
    merged = transform.merge(adapter, transform.freeze(mlp(), adapter))
    return merged['hidden']['kernel'] - mlp().params['hidden']['kernel']


def test_gralora_of_one_block_is_lora():
    granular = peftjax.gralora(rank=2, blocks=1, alpha=6, targets='hidden')
    plain = peftjax.lora(rank=2, alpha=6, targets='hidden')
    one, _ = moved(granular, mlp(), 1)
    arrays = {name: leaf[0] for name, leaf in one['hidden/kernel'].items()}
    same = {'hidden/kernel': peftjax.Entry('lora', arrays, one['hidden/kernel'].layout)}
    np.testing.assert_allclose(_change(granular, one), _change(plain, same), rtol=1e-5, atol=1e-6)


def test_gralora_has_a_higher_rank_than_lora():
    tx = peftjax.gralora(rank=2, blocks=2, targets='hidden')
    adapter, _ = moved(tx, mlp(), 1, size=1.0)
    assert np.linalg.matrix_rank(_change(tx, adapter), tol=1e-4) == 4


def test_block_affine_miss_turns_and_shifts_every_block():
    tx = peftjax.miss(rank=2, bat=True, targets='hidden')
    adapter, _ = moved(tx, mlp(), 1)
    d, kernel = adapter['hidden/kernel']['d'], mlp().params['hidden']['kernel']
    change = _change(tx, adapter)
    for i in range(2):
        for o in range(4):
            block = (slice(2 * i, 2 * i + 2), slice(2 * o, 2 * o + 2))
            expected = d[o].T @ (kernel[block] + jnp.eye(2))
            np.testing.assert_allclose(change[block], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: peftjax.gralora(rank=3, blocks=2, targets='hidden'), 'rank=2'),
        (lambda: peftjax.gralora(rank=0, targets='hidden'), 'rank must be'),
        (lambda: peftjax.gralora(rank=2, dropout=1.0, targets='hidden'), 'dropout is a rate'),
        (lambda: peftjax.miss(rank=2, mini_rank=2, bat=True, targets='hidden'), 'not both'),
    ],
)
def test_settings_that_do_not_fit_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (
            lambda: peftjax.gralora(rank=3, blocks=3, targets='hidden'),
            r"input size 4 of 'hidden/kernel' \(4, 8\) float32; write for example blocks=1",
        ),
        (lambda: peftjax.miss(rank=3, bat=True, targets='hidden'), 'rank 3 does not divide'),
    ],
)
def test_sizes_that_do_not_divide_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), mlp())
