"""Checkpoints on a mesh: each leaf where it belongs, and the gradients of one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import peftjax
from tests.checkpoint_files import golden, task_of, write_folder
from tests.structures.entry import normal_like


@pytest.mark.parametrize('variant', ['llama', 'bert'])
def test_a_checkpoint_goes_where_it_belongs_leaf_by_leaf(variant, tmp_path):
    config, weights, inputs, _ = golden(variant)
    if variant == 'bert':  # a head that is new
        weights = {name: value for name, value in weights.items() if 'classifier' not in name}
    folder = write_folder(tmp_path, config, weights)
    labels = 3 if variant == 'bert' else None
    mesh = peftjax.make_mesh(data=2, fsdp=4)
    plain, spread = (
        peftjax.load(folder, task=task_of(variant), num_labels=labels, mesh=m) for m in (None, mesh)
    )
    where = peftjax.shardings(plain, mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, spread.params) == where
    assert any(sharding.spec != PartitionSpec() for sharding in jax.tree.leaves(where))
    jax.tree.map(np.testing.assert_array_equal, spread.params, plain.params)
    expected = plain.apply(plain.params, **inputs)
    found = jax.jit(spread.apply)(spread.params, **inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


FAMILIES = ['dinov2', 'gemma2', 'gpt2', 'mistral', 'qwen3', 'roberta', 't5_gated', 'vit', 'whisper']


@pytest.mark.sampled
@pytest.mark.parametrize('variant', FAMILIES)
def test_gradients_of_every_family_are_those_of_one_device(variant, tmp_path):
    config, weights, inputs, _ = golden(variant)
    folder = write_folder(tmp_path, config, weights)
    mesh = peftjax.make_mesh(data=2, fsdp=2, tensor=2)
    plain, spread = (peftjax.load(folder, task=task_of(variant), mesh=m) for m in (None, mesh))
    matrices = tuple(
        re.escape(path)
        for path, site in plain.sites.weights.items()
        if path.endswith('kernel') and site.layout is not None and not site.vector
    )
    transform = peftjax.lora(rank=2, targets=matrices)
    adapter, _ = jax.eval_shape(transform.init, jax.random.key(0), plain)
    adapter = normal_like(adapter, scale=0.1)
    inputs = {name: np.concatenate([value] * 4)[:4] for name, value in inputs.items()}

    def gradient(model):
        predict = peftjax.adapt(model, transform)

        def loss(adapter, frozen, inputs):
            result = jax.tree.leaves(predict(adapter, frozen, **inputs))[0]
            return jnp.mean(result.astype(jnp.float32) ** 2)

        return jax.jit(jax.value_and_grad(loss))

    expected = gradient(plain)(adapter, transform.freeze(plain, adapter), inputs)
    where = peftjax.state_shardings(adapter, spread, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(inputs, peftjax.batch_sharding(mesh))
        frozen = transform.freeze(spread, adapter)
        found = gradient(spread)(jax.device_put(adapter, where), frozen, placed)
    jax.tree.map(
        lambda mine, theirs: np.testing.assert_allclose(
            mine, theirs, atol=3e-4 * max(1e-3, np.abs(theirs).max())
        ),
        found,
        expected,
    )
    shared = [leaf for leaf in jax.tree.leaves(spread.params) if not leaf.is_fully_replicated]
    assert sum(leaf.size for leaf in shared) > 0.5 * sum(
        leaf.size for leaf in jax.tree.leaves(spread.params)
    )
