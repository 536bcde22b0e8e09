"""GPTQ: codes by the paper's algorithm, and outputs that change less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.core import paths
from peftjax.core.quantized import is_quantized
from peftjax.quantize.compensated import pack_compensated
from peftjax.quantize.model import quantizable
from peftjax.quantize.nf4 import VALUES
from peftjax.train.moments import moments
from tests.contract_models import IDS, MODELS


@pytest.mark.sampled
@pytest.mark.parametrize('double', [False, True])
@pytest.mark.parametrize('columns', [24, 20])
def test_codes_are_those_of_the_papers_algorithm(columns, double):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, columns))
    x = rng.normal(size=(50, columns)) @ rng.normal(size=(columns, columns))
    x[:, 3] = 0.0  # an input that is never there
    scheme = peftjax.NF4(block=8, double=double)
    arrays = pack_compensated(jnp.asarray(matrix), jnp.asarray(x.T @ x), scheme, 0.01)

    # Algorithm 1 without its Cholesky factors: an input is rounded, and eliminated from H^-1.
    # The largest inputs first.
    squares = x.T @ x
    inverse = np.linalg.inv(squares + 0.01 * np.diag(squares).mean() * np.eye(columns))
    steps = np.asarray(scheme.steps(scheme.pack(jnp.asarray(matrix))), np.float64)
    expected, left = np.zeros_like(matrix), matrix.copy()
    for j in np.argsort(-np.diag(squares), stable=True):
        nearest = abs(VALUES[None] - (left[:, j] / steps[:, j])[:, None]).argmin(1)
        expected[:, j] = VALUES[nearest] * steps[:, j]
        left -= np.outer((left[:, j] - expected[:, j]) / inverse[j, j], inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    found = np.asarray(scheme.unpack(arrays))[:, :columns]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    plain = np.asarray(scheme.unpack(scheme.pack(jnp.asarray(matrix))))[:, :columns]
    assert (abs(found - plain) > 1e-3).any()
    assert np.linalg.norm(x @ (found - matrix).T) < 0.85 * np.linalg.norm(x @ (plain - matrix).T)


@pytest.mark.sampled
@pytest.mark.parametrize('form', ['linen scanned', 'linen looped', 'nnx looped'])
def test_a_model_changes_less_than_by_rounding_alone(form):
    model = MODELS[form]()
    batches = [{'ids': IDS}, {'ids': IDS[::-1]}]
    small, scheme = peftjax.train.gptq(model, batches), peftjax.NF4()
    plain = peftjax.quantize(model, scheme)
    assert jax.tree.structure(small.params) == jax.tree.structure(plain.params)
    for mine, theirs in zip(*map(jax.tree.leaves, (small.params, plain.params)), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)

    chosen = quantizable(model.sites)
    found = moments(model, batches, targets=tuple(chosen))

    def lost(params):
        """The sum of || X (W - Q) ||^2 over all matrices."""
        total, flat = 0.0, paths.flatten(peftjax.dequantize(params))
        for path, weight in paths.flatten(model.params).items():
            if path in found:
                layout = model.sites.weights[path].layout
                assert layout is not None
                error = layout.to_matrix(flat[path] - weight)
                total += jnp.einsum('...io,...ij,...jo->', error, found[path].squares, error)
        return float(total)

    assert lost(small.params) < 0.75 * lost(plain.params)


def test_what_counts_decides_and_what_is_quantised_stays():
    model = MODELS['linen looped']()
    first = peftjax.train.gptq(model, [{'ids': IDS}], targets=r'layers_0/.*kernel')
    second = peftjax.train.gptq(first, [{'ids': IDS}])
    flat = [paths.flatten(each.params) for each in (first, second)]
    assert all(is_quantized(flat[1][path]) for path in quantizable(model.sites))
    for path in quantizable(model.sites, r'layers_0/.*kernel'):
        np.testing.assert_array_equal(flat[0][path].arrays['codes'], flat[1][path].arrays['codes'])
    assert peftjax.train.gptq(second, []) is second

    def counted(batch):
        return jnp.broadcast_to(jnp.arange(8)[:, None] < 4, (8, 5))

    half = peftjax.train.gptq(model, [{'ids': IDS}], counted=counted)
    alone = peftjax.train.gptq(model, [{'ids': IDS[:4]}])
    for mine, theirs in zip(*map(jax.tree.leaves, (half.params, alone.params)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_gptq_refuses_what_it_cannot_learn_from():
    mlp = peftjax.testing.tiny_mlp()
    x = jnp.ones((2, 4))
    with pytest.raises(ValueError, match='no batches'):
        peftjax.train.gptq(mlp, [], targets=r'hidden')
    with pytest.raises(ValueError, match='damping must be above 0, got 0.0'):
        peftjax.train.gptq(mlp, [{'x': x}], targets=r'hidden', damping=0.0)
    with pytest.raises(ValueError, match="'hidden/kernel' are not finite"):
        peftjax.train.gptq(mlp, [{'x': x.at[0, 1].set(jnp.nan)}], targets=r'hidden')
    with pytest.raises(peftjax.TargetError, match='hiden'):
        peftjax.train.gptq(mlp, [{'x': x}], targets=r'hiden')
