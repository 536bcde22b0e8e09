"""ViT and DINOv2 however they are built, and methods on images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.core import paths
from peftjax.models.stack import unstack_layers
from peftjax.models.vit import ViT
from peftjax.models.vit_config import Dinov2Config, ViTConfig, parse_vit
from tests.checkpoint_files import golden, write_folder
from tests.linen import applied, once

SIZES: dict[str, Any] = {
    'hidden_size': 16,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'image_size': 12,
    'patch_size': 4,
}
VIT = ViTConfig(**SIZES, intermediate_size=24)
DINOV2 = Dinov2Config(**SIZES)
PIXELS = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)


@once
def _params(module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), PIXELS)['params']
    generator = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), leaf.dtype), shapes
    )


def _run(module, params, pixels=PIXELS):
    return jax.jit(lambda params: module.apply({'params': params}, pixel_values=pixels))(params)


@pytest.mark.parametrize('config', [VIT, DINOV2], ids=['vit', 'dinov2'])
@pytest.mark.parametrize(('scan', 'remat'), [(False, None), (True, 'full')])
def test_remat_and_scan_change_nothing(config, scan, remat):
    params = _params(ViT(config, outputs=3))
    other = ViT(config, outputs=3, scan=scan, remat=remat)
    found = _run(other, params if scan else unstack_layers(params))
    np.testing.assert_allclose(found, _run(ViT(config, outputs=3), params), atol=1e-5)


@pytest.mark.parametrize('config', [VIT, DINOV2], ids=['vit', 'dinov2'])
def test_bfloat16_computes_and_stores_in_bfloat16(config):
    module = ViT(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    states = _run(module, _params(module))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), _params(module))
    assert states.dtype == jnp.bfloat16
    np.testing.assert_allclose(states, _run(ViT(config), wide), atol=0.15)


def test_a_patch_is_a_product_with_the_checkpoints_kernel():
    config, weights, inputs, _ = golden('vit')
    kernel = weights['vit.embeddings.patch_embeddings.projection.weight']
    pixels = inputs['pixel_values']
    embed = np.einsum('bchw,dchw->bd', pixels[:, :, 4:8, 8:12], kernel)
    module = ViT(parse_vit(config))
    params = _params(module)
    params['embeddings']['patch_embeddings'] = {
        'kernel': kernel.T,
        'bias': np.zeros(16, np.float32),
    }
    _, state = applied(module, {'params': params}, pixels, capture_intermediates=True, mutable=True)
    patches = state['intermediates']['embeddings']['patch_embeddings']['__call__'][0]
    np.testing.assert_allclose(patches[:, 2, 1], embed, atol=1e-5)  # across, then down


@pytest.mark.parametrize(
    ('pixels', 'message'),
    [
        (PIXELS[0], r'pixel_values must be floats .* got float32\(3, 12, 12\)'),
        (PIXELS.astype(np.int32), 'pixel_values must be floats'),
        (PIXELS.transpose(0, 2, 3, 1), 'have 12 channels on axis 1, this checkpoint has 3'),
        (PIXELS[:, :, :10], 'multiples of the patch of 4 pixels'),
    ],
)
def test_wrong_pixels_are_refused_by_name(pixels, message):
    with pytest.raises(ValueError, match=message):
        ViT(VIT).apply({'params': _params(ViT(VIT))}, pixel_values=pixels)


def test_configs_that_cannot_be_are_refused():
    raw = {'model_type': 'vit', **SIZES}
    assert parse_vit({**raw, 'patch_size': [4, 4]}) == parse_vit(raw)
    for change, message in (
        ({'patch_size': [4, 2]}, r'patch_size: \[4, 2\] is not of type int'),
        ({'patch_size': 16}, 'image_size 12 is less than patch_size 16'),
        ({'num_attention_heads': 3}, 'not a multiple of num_attention_heads 3'),
        ({'drop_path_rate': 0.1}, 'drop_path_rate: 0.1 is not supported'),
    ):
        with pytest.raises(ValueError, match=message):
            parse_vit({**raw, **change})


METHODS = {
    'lora': peftjax.lora(rank=2, targets=r'.*/(query|value)'),
    'lora on patches': peftjax.lora(rank=2, targets=r'.*patch_embeddings'),
    'head': peftjax.select(r'classifier/.*'),
    'biases': peftjax.select(r'.*/bias'),
    'houlsby': peftjax.houlsby(size=2, targets=r'.*(attention|ffn)_branch'),
    'prefix': peftjax.prefix_tuning(num_virtual_tokens=3, targets=r'.*core'),
    'intrinsic': peftjax.intrinsic(dimension=20),
}


@pytest.mark.sampled
@pytest.mark.parametrize(
    ('variant', 'name'),
    [
        pytest.param(variant, name, marks=() if turn == number % 2 else pytest.mark.slow)
        for number, name in enumerate(METHODS)
        for turn, variant in enumerate(('vit', 'dinov2'))
    ],
)
def test_methods_train_an_image_classifier(variant, name, tmp_path):
    config, weights, inputs, logits = golden(variant)
    model = peftjax.load(write_folder(tmp_path, config, weights), task='classification')
    transform = METHODS[name]
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    predict = peftjax.adapt(model, transform)

    def loss(adapter):
        return (predict(adapter, frozen, **inputs) ** 2).mean()

    gradient = jax.jit(jax.grad(loss))(adapter)
    for path, leaf in paths.flatten(gradient).items():
        assert jnp.isfinite(leaf).all() and jnp.any(leaf != 0), path
    adapted = predict(adapter, frozen, **inputs)
    assert not np.allclose(adapted, logits, atol=1e-3)
    try:
        merged = transform.merge(adapter, frozen)
    except peftjax.MergeError:
        return
    np.testing.assert_allclose(adapted, model.apply(merged, **inputs), atol=2e-5)


@pytest.mark.parametrize('variant', ['vit', 'dinov2', 'dinov2_swiglu'])
def test_a_merged_image_model_is_saved_and_loaded(variant, tmp_path):
    config, weights, inputs, _ = golden(variant)
    source = write_folder(tmp_path / 'base', config, weights)
    model = peftjax.load(source, task='classification')
    params = jax.tree.map(lambda leaf: leaf * 1.1, model.params)
    peftjax.save_checkpoint(tmp_path / 'merged', model, params, source)
    again = peftjax.load(tmp_path / 'merged', task='classification')
    np.testing.assert_array_equal(
        model.apply(params, **inputs), again.apply(again.params, **inputs)
    )
