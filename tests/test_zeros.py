"""Methods that divide by a norm, or decompose, beside rows and columns of zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from tests.algebra import KEY, function

ZERO_COLUMN = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32).at[:, 3].set(0)
ZEROS = {
    'column': ZERO_COLUMN,
    'row': ZERO_COLUMN.T,
    'all': jnp.zeros((8, 8)),
}


@functools.cache
def _beside_zeros(kind):
    return function(lambda p, x: x @ p['w'], INPUTS, w=ZEROS[kind])


INPUTS = jnp.asarray(np.random.default_rng(1).normal(size=(5, 8)), jnp.float32)

BY_A_NORM = {
    'dora': lambda model: peftjax.dora(rank=2, targets='w'),
    'delora': lambda model: peftjax.delora(rank=2, targets='w'),
    'oft': lambda model: peftjax.oft(block_size=4, targets='w'),
    'oft, bounded': lambda model: peftjax.oft(block_size=4, eps=0.1, targets='w'),
    'oft, by a series': lambda model: peftjax.oft(block_size=4, neumann_terms=5, targets='w'),
    'boft': lambda model: peftjax.boft(block_size=2, factors=2, targets='w'),
    'hra': lambda model: peftjax.hra(rank=2, targets='w'),
    'hra, gram-schmidt': lambda model: peftjax.hra(rank=2, gram_schmidt=True, targets='w'),
    'psoft': lambda model: peftjax.psoft(peftjax.principal_subspaces(model, rank=3, targets='w')),
    'hira': lambda model: peftjax.hira(rank=2, targets='w'),
    'road': lambda model: peftjax.road(group_size=8, targets='w'),
    'pissa': lambda model: peftjax.lora(rank=2, init='pissa', targets='w'),
    'olora': lambda model: peftjax.lora(rank=2, init='olora', targets='w'),
    'loftq': lambda model: peftjax.loftq(rank=2, targets='w'),
}


@pytest.mark.sampled
@pytest.mark.parametrize('kind', ZEROS)
@pytest.mark.parametrize('name', BY_A_NORM)
def test_beside_zeros_what_is_merged_is_what_is_computed(name, kind):
    model = _beside_zeros(kind)
    tx = BY_A_NORM[name](model)
    fresh, frozen = tx.init(KEY, model)
    whole = frozen._replace(params=peftjax.dequantize(frozen.params))
    predict = peftjax.adapt(model, tx)
    slope = jax.grad(lambda adapter: (predict(adapter, frozen, INPUTS) ** 2).sum())
    for adapter in (fresh, peftjax.testing.perturb(fresh, 0, 0.3)):
        computed = predict(adapter, frozen, INPUTS)
        merged = tx.merge(adapter, whole)
        assert jnp.isfinite(computed).all()
        np.testing.assert_allclose(INPUTS @ merged['w'], computed, rtol=1e-4, atol=1e-4)
        for leaf in jax.tree.leaves(slope(adapter)):
            assert jnp.isfinite(leaf).all()
    if name not in ('hra, gram-schmidt', 'loftq'):  # The two that do not start as the model.
        np.testing.assert_allclose(
            predict(fresh, frozen, INPUTS), INPUTS @ ZEROS[kind], rtol=1e-4, atol=1e-5
        )
