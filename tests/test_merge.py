"""What rounding loses of a merged change, against NumPy in float64."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import peftjax
from peftjax.core import paths
from tests.algebra import KEY, assert_raises, mlp

LORA = peftjax.lora(rank=2, targets=r'.*')


def moved(tx, model, size=0.02):
    adapter, frozen = tx.init(KEY, model)
    return peftjax.testing.perturb(adapter, 0, size), frozen


def rounded(values, dtype):
    return np.asarray(values, np.float32).astype(dtype).astype(np.float64)


def share(weight, merged, dtype):
    merged = np.asarray(merged, np.float64)
    change = np.linalg.norm(merged - np.asarray(weight, np.float64))
    return np.linalg.norm(rounded(merged, dtype) - merged) / change


def in_bfloat16(model):
    return model.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))


@pytest.mark.parametrize('size', [0.001, 0.02, 1.0])
def test_lora_on_a_bfloat16_model(size):
    model = in_bfloat16(mlp())
    adapter, frozen = moved(LORA, model, size)
    found = jax.jit(lambda *both: peftjax.merge_loss(LORA, *both))(adapter, frozen)
    assert list(found) == ['hidden/kernel', 'out/kernel']
    weights = paths.flatten(model.params)
    for path, each in found.items():
        entry = {name: np.asarray(leaf, np.float64) for name, leaf in adapter[path].items()}
        weight = np.asarray(weights[path], np.float64)
        expected = share(weight, weight + entry['a'] @ entry['b'], ml_dtypes.bfloat16)
        assert each.dtype == jnp.float32
        np.testing.assert_allclose(each, expected, rtol=2e-3)
    # A small change is lost, a large one is not.
    assert (float(found['hidden/kernel']) > 0.3) == (size == 0.001)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_another_dtype_than_the_model_has(dtype):
    adapter, frozen = moved(LORA, mlp())
    found = peftjax.merge_loss(LORA, adapter, frozen, dtype)
    merged = paths.flatten(LORA.merge(adapter, frozen))
    weights = paths.flatten(mlp().params)
    for path, each in found.items():
        np.testing.assert_allclose(each, share(weights[path], merged[path], dtype), rtol=2e-3)
    assert (max(map(float, found.values())) == 0) == (dtype == jnp.float32)


def test_nothing_changed():
    adapter, frozen = LORA.init(KEY, in_bfloat16(mlp()))
    assert [float(each) for each in peftjax.merge_loss(LORA, adapter, frozen).values()] == [0, 0]
    adapter, frozen = LORA.init(KEY, mlp())
    found = peftjax.merge_loss(LORA, adapter, frozen, jnp.bfloat16)
    assert all(jnp.isinf(each) for each in found.values())


@pytest.mark.parametrize(
    ('tx', 'path'),
    [
        (peftjax.select(r'hidden/.*'), 'hidden/bias'),
        (peftjax.lora(rank=2, targets=r'hidden', init='pissa'), 'hidden/kernel'),
        (peftjax.chain(peftjax.select(r'out/bias'), LORA), 'out/bias'),
    ],
)
def test_a_change_that_is_counted_from_the_model(tx, path):
    model = in_bfloat16(mlp())
    adapter, frozen = moved(tx, model)
    said = (repr(path), 'params=model.params')
    assert_raises(ValueError, lambda: peftjax.merge_loss(tx, adapter, frozen), *said)
    found = peftjax.merge_loss(tx, adapter, frozen, params=model.params)
    merged = paths.flatten(tx.merge(adapter, frozen, dtype=jnp.float32))
    weights = paths.flatten(model.params)
    assert path in found
    for each, value in found.items():
        expected = share(weights[each], merged[each], ml_dtypes.bfloat16)
        np.testing.assert_allclose(value, expected, rtol=2e-3)


def test_what_cannot_be_counted():
    adapter, frozen = moved(LORA, mlp())
    wrong = {'hidden': mlp().params['hidden']}
    assert_raises(
        ValueError, lambda: peftjax.merge_loss(LORA, adapter, frozen, params=wrong), "'out/kernel'"
    )
    tx = peftjax.bottleneck(size=2, targets=r'hidden')
    assert_raises(
        peftjax.MergeError, lambda: peftjax.merge_loss(tx, *tx.init(KEY, mlp())), "['hidden']"
    )


def test_a_merge_in_float32_loses_nothing():
    adapter, frozen = moved(LORA, in_bfloat16(mlp()), 0.001)
    merged = LORA.merge(adapter, frozen, dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.float32)}
    found = peftjax.merge_loss(LORA, adapter, frozen, jnp.float32)
    assert [float(each) for each in found.values()] == [0, 0]
