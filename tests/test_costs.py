"""What the compiler counts for a forward pass is what the docstrings' formulas say, to 3 %.

On matrices large enough that products are products: of the contract's small ones the compiler turns
some into sums. Formulas in T tokens and, for each matrix, its sides i and o. The compiler counts
the body of the loop that inverts OFT's blocks once, and so do they.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import peftjax
from peftjax.testing import _flops

T, SIDES = 512, ((128, 256), (256, 128))


class _Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(128, name='down')(nn.Dense(256, name='up')(x))


X = jnp.ones((8, 64, 128))
MODEL = peftjax.wrap(_Two(), _Two().init(jax.random.key(0), X), {'x': X})


def _total(formula):
    return sum(formula(i, o) for i, o in SIDES)


COSTS = {
    'lora': (
        peftjax.lora(rank=8, alpha=16, targets='.*'),
        lambda i, o: 16 * T * (i + o) + 2 * T * o,
    ),
    'lora_fa': (
        peftjax.lora_fa(rank=8, alpha=16, targets='.*'),
        lambda i, o: 16 * T * (i + o) + 2 * T * o,
    ),
    'dora': (
        peftjax.dora(rank=8, alpha=16, targets='.*'),
        lambda i, o: (
            16 * T * (i + o) + 3 * T * o + 16 * i * (o + 8) + 2 * 64 * o + 2 * i * o + 6 * 8 * o
        ),
    ),
    'adalora': (
        peftjax.adalora(init_rank=8, targets='.*'),
        lambda i, o: 16 * T * (i + o) + T * o + 8 * (o + 1),
    ),
    'vera': (
        peftjax.vera(rank=16, targets='.*'),
        lambda i, o: 32 * T * (i + o) + T * (16 + 2 * o),
    ),
    'loha': (
        peftjax.loha(rank=4, alpha=8, targets='.*'),
        lambda i, o: (16 + 2) * i * o + 2 * T * i * o + T * o,
    ),
    'hira': (
        peftjax.hira(rank=4, targets='.*'),
        lambda i, o: (8 + 1) * i * o + 2 * T * i * o + T * o,
    ),
    'hra': (peftjax.hra(rank=8, targets='.*'), lambda i, o: 32 * T * i + 48 * i),
    'lokr': (
        peftjax.lokr(rank=4, factor=8, targets='.*'),
        lambda i, o: 2 * T * i * o // 8 + 2 * T * 8 * o + 2 * T * o + 2 * (i // 8) * 4 * (o // 8),
    ),
    'gralora': (
        peftjax.gralora(rank=8, alpha=16, targets='.*'),
        lambda i, o: 16 * T * (i + o) + 4 * T * o,
    ),
    'miss': (peftjax.miss(rank=16, targets='.*'), lambda i, o: T * i + 32 * T * o + T * o),
    'c3a': (
        peftjax.c3a(block_size=16, targets='.*'),
        lambda i, o: T * (18 * i + 18 * i * o / 256 + 36 * o + 3 * i + 5 * o),
    ),
    'oft': (peftjax.oft(block_size=16, targets='.*'), lambda i, o: 32 * T * i + 3 * 16 * i),
    'oft by a series': (
        peftjax.oft(block_size=16, neumann_terms=5, targets='.*'),
        lambda i, o: 32 * T * i + 2 * 3 * 16**2 * i,
    ),
    'boft': (
        peftjax.boft(block_size=16, factors=2, targets='.*'),
        lambda i, o: 64 * T * i + T * o + 2 * 3 * 16 * i,
    ),
    'randlora': (
        peftjax.randlora(rank=16, targets='.*'),
        lambda i, o: 2 * T * 128 * (i + o) + 2 * T * o + 2 * 128 * 128,
    ),
    'diff_pruning': (
        peftjax.diff_pruning(targets='.*'),
        lambda i, o: 2 * T * i * o + T * o + 12 * i * o,
    ),
    'select': (peftjax.select('.*'), lambda i, o: 0),
    'bottleneck': (
        peftjax.bottleneck(size=16, targets='.*'),
        lambda i, o: 64 * T * o + T * (32 + 3 * o),
    ),
    'compacter': (
        peftjax.compacter(size=32, terms=4, activation='relu', targets='.*'),
        lambda i, o: 8 * T * (2 * o + 32 + 64) + T * (64 + 3 * o),
    ),
    'loreft': (
        peftjax.loreft(rank=8, targets='.*'),
        lambda i, o: 48 * T * o + T * (2 * o + 16),
    ),
    'noreft': (
        peftjax.noreft(rank=8, targets='.*'),
        lambda i, o: 48 * T * o + T * (2 * o + 16),
    ),
    'direft': (peftjax.direft(rank=8, targets='.*'), lambda i, o: 32 * T * o + T * (2 * o + 8)),
}


@pytest.mark.parametrize('name', COSTS)
def test_a_forward_pass_costs_what_its_formula_says(name):
    tx, formula = COSTS[name]
    adapter = jax.eval_shape(tx.init, jax.random.key(0), MODEL)
    predict = peftjax.adapt(MODEL, tx)
    with_adapter = _flops(
        lambda adapter, params, x: predict(adapter, params, x=x), adapter, MODEL.params, x=X
    )
    found = with_adapter - _flops(MODEL.apply, MODEL.params, x=X)
    assert found == pytest.approx(_total(formula), rel=0.03)
