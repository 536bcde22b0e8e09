"""Quantised bases: the formats, and models and methods on them."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

import peftjax
import peftjax.train
from peftjax.core import paths
from peftjax.core.quantized import is_quantized
from peftjax.quantize import nf4
from peftjax.quantize.gguf_blocks import Q4_0, Q4_1, Q8_0
from peftjax.quantize.model import SCHEMES
from tests.checkpoint_files import GOLDEN, outputs
from tests.contract_models import IDS, MODELS
from tests.rows import METHODS


def _matrix(rows=150, columns=192):
    """The matrix of tests/golden/make/nf4.py: normal, with rows of very different sizes."""
    matrix = np.random.RandomState(0).standard_normal((rows, columns)).astype(np.float32)
    return matrix * np.exp(np.random.RandomState(1).standard_normal((rows, 1))).astype(np.float32)


def test_the_values_of_nf4_are_bitsandbytes_and_the_quantiles_that_the_paper_says():
    golden = outputs(GOLDEN / 'nf4')
    np.testing.assert_allclose(nf4.VALUES, golden['values'], rtol=0, atol=1e-7)
    np.testing.assert_allclose(nf4.SCALES, golden['scale_values'], rtol=0, atol=1e-7)
    above = ndtri(np.linspace(0.9677083, 0.5, 9)[:-1])
    below = -ndtri(np.linspace(0.9677083, 0.5, 8)[:-1])
    quantiles = np.sort([*below, 0.0, *above]) / above.max()
    np.testing.assert_allclose(nf4.VALUES, quantiles, rtol=0, atol=3e-7)


@pytest.mark.parametrize('double', [False, True])
def test_nf4_has_the_codes_of_bitsandbytes(double):
    golden, name = outputs(GOLDEN / 'nf4'), 'double' if double else 'single'
    scheme = peftjax.NF4(double=double)
    arrays = jax.jit(scheme.pack)(_matrix())
    np.testing.assert_array_equal(arrays['codes'], golden[f'{name}_codes'])
    np.testing.assert_array_equal(arrays['scale'], golden[f'{name}_scale'])
    if double:
        np.testing.assert_allclose(arrays['mean'], golden['mean'], rtol=1e-6)
        np.testing.assert_allclose(arrays['scale_scale'], golden['scale_scale'], rtol=1e-5)
    values = np.asarray(scheme.unpack(arrays))[::10]
    np.testing.assert_allclose(values, golden[f'{name}_values'], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize('scheme', [Q8_0(), Q4_0(), Q4_1()], ids=lambda scheme: scheme.name)
def test_blocks_of_gguf_are_packed_and_read_as_the_gguf_package_does(scheme):
    kind = gguf.GGMLQuantizationType[scheme.name.upper()]
    matrix = _matrix()
    raw = gguf.quantize(matrix, kind)
    split = scheme.split(raw)
    arrays = jax.jit(scheme.pack)(matrix)
    for array, expected in split.items():
        # A fused product may round a value at the border of two codes to the other.
        assert np.mean(np.asarray(arrays[array]) != expected) < 1e-3
    np.testing.assert_array_equal(scheme.unpack(split), gguf.dequantize(raw, kind))


@pytest.mark.sampled
@pytest.mark.parametrize('name', SCHEMES)
@pytest.mark.parametrize('shape', [(5, 192), (3, 50), (1, 1)])
def test_what_is_read_is_near_what_was_packed(name, shape):
    matrix, scheme = _matrix(*shape), SCHEMES[name]()
    read = np.asarray(scheme.unpack(jax.jit(scheme.pack)(matrix)))[:, : shape[1]]
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    bound = {'int8': 0.5 / 127, 'q8_0': 0.51 / 127, 'nf4': 0.17, 'q4_0': 0.13, 'q4_1': 0.07}[name]
    assert (np.abs(read - matrix) <= bound * largest + 1e-6).all()
    zeros = np.asarray(scheme.unpack(scheme.pack(jnp.zeros(shape))))
    np.testing.assert_array_equal(zeros, np.zeros_like(zeros))


@pytest.mark.sampled
@pytest.mark.parametrize(
    ('form', 'name'),
    [*((form, 'nf4') for form in MODELS), *(('linen scanned', name) for name in SCHEMES)],
)
def test_a_model_computes_with_the_values_that_were_read(form, name):
    model = MODELS[form]()
    small = peftjax.quantize(model, name)
    plain = peftjax.dequantize(small.params)
    assert jax.tree.structure(plain) == jax.tree.structure(model.params)
    quantised = [leaf for leaf in paths.flatten(small.params).values() if is_quantized(leaf)]
    assert len(quantised) >= 6
    tolerance = 3e-2 if 'bfloat16' in form else 1e-5
    expected = model.apply(plain, ids=IDS)
    for apply in (small.apply, jax.jit(small.apply)):
        np.testing.assert_allclose(
            *(np.asarray(each, np.float32) for each in (apply(small.params, ids=IDS), expected)),
            atol=tolerance,
            rtol=tolerance,
        )


_FORMS = ('linen scanned, rematerialised', 'linen looped', 'linen scanned')
_ALL = [name for name, row in METHODS.items() if not row.variant]
_OF_WHOLE = ('lora, pissa', 'lora, olora', 'kasa', 'loftq')  # whose base lacks what they start with


def _turns():
    """Every method on one form; of five methods one by default."""
    for i, name in enumerate(_ALL):
        marks = pytest.mark.slow if i % 5 else ()
        yield pytest.param(name, _FORMS[i // 5 % len(_FORMS)], marks=marks)


@pytest.mark.parametrize(('method', 'form'), list(_turns()))
def test_every_method_trains_on_a_quantised_base(method, form):
    """Outputs and gradients are those on the same values in full precision."""
    model, row = MODELS[form](), METHODS[method]
    small = peftjax.quantize(model, 'nf4')
    plain = model.replace(params=peftjax.dequantize(small.params))
    tx = row.maker(plain)(row.targets)
    if method in _OF_WHOLE:
        with pytest.raises(peftjax.MergeError, match='dequantize'):
            tx.init(jax.random.key(0), small)
        return
    (fresh, frozen), (expected, whole) = (
        tx.init(jax.random.key(0), each) for each in (small, plain)
    )
    _assert_close(fresh, expected, 1e-5)
    jax.tree.map(np.testing.assert_array_equal, frozen.own, whole.own)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    predict = peftjax.adapt(model, tx)

    def loss(adapter, frozen):
        return jnp.sum(jnp.sin(jax.tree.leaves(predict(adapter, frozen, ids=IDS))[0]))

    slope = jax.jit(jax.value_and_grad(loss))
    _assert_close(slope(adapter, frozen), slope(adapter, whole), 1e-4)


def _assert_close(first, second, tolerance):
    for path, leaf in paths.flatten(first).items():
        mine, other = (np.asarray(each, np.float32) for each in (leaf, paths.flatten(second)[path]))
        bound = tolerance * max(1.0, np.abs(other).max(initial=0.0))
        np.testing.assert_allclose(mine, other, rtol=0, atol=bound, err_msg=path)
