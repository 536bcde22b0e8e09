"""What `save` and `restore` refuse: another model, another transform, half a folder."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.interop.files import whole
from peftjax.interop.folder import arrays as files
from tests.saved_folders import MLP, assert_same

X = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)


def test_another_model_is_refused(tmp_path):
    mlp, transform = MLP(), peftjax.lora(rank=2, targets=r'hidden')
    peftjax.save(tmp_path, mlp, transform, *transform.init(jax.random.key(0), mlp))

    def with_kernel(leaf):
        return mlp.replace(params={**mlp.params, 'out': {**mlp.params['out'], 'kernel': leaf}})

    kernel = mlp.params['out']['kernel']
    for leaf, told in [
        (kernel.at[3, 1].add(1e-3), r"'out/kernel' was \[8, 3\] float32.* with other numbers"),
        (kernel.astype(jnp.bfloat16), r"'out/kernel' .*float32, .* \[8, 3\] bfloat16"),
        (kernel[:, :2], r"'out/kernel' was \[8, 3\] float32, this model has \[8, 2\] float32"),
        (jax.ShapeDtypeStruct((8, 3), jnp.float32), 'real arrays'),
    ]:
        with pytest.raises((peftjax.CheckpointError, TypeError), match=told):
            peftjax.restore(tmp_path, with_kernel(leaf))
    with pytest.raises(peftjax.CheckpointError, match=r"'hidden/kernel' .* by Int8\(\)"):
        peftjax.restore(tmp_path, peftjax.quantize(mlp, 'int8', targets='hidden'))
    wide = nn.Dense(3)
    other = peftjax.wrap(wide, wide.init(jax.random.key(0), X), X)
    with pytest.raises(peftjax.CheckpointError, match="'hidden/bias' this model has none"):
        peftjax.restore(tmp_path, other)


def test_a_large_leaf_is_told_by_a_sample():
    leaf = np.random.default_rng(0).normal(size=(300, 700)).astype(np.float32)
    assert files.checksum(leaf) == files.checksum(jnp.asarray(leaf))
    places = files.sample(np.arange(leaf.size).reshape(leaf.shape))
    rows, columns = np.unique(places // 700), np.unique(places % 700)
    assert (len(rows), len(columns)) == (300, 700)
    assert files.checksum(leaf) != files.checksum(leaf + 1e-6)


def test_what_cannot_be_saved_says_so(tmp_path):
    mlp = MLP()
    lora, other = (peftjax.lora(rank=rank, targets=r'hidden') for rank in (2, 3))
    adapter, frozen = lora.init(jax.random.key(0), mlp)
    with pytest.raises(peftjax.AdapterError, match=r"'hidden/kernel/a' of shape \(4, 2\)"):
        peftjax.save(tmp_path, mlp, other, adapter, frozen)
    with pytest.raises(TypeError, match='model is a PeftTransform'):
        peftjax.save(tmp_path, lora, mlp, adapter, frozen)  # pyright: ignore
    with pytest.raises(TypeError, match='arguments are swapped'):
        peftjax.save(tmp_path, mlp, lora, frozen, adapter)
    cut = {**frozen.params, 'out': {'kernel': jnp.ones((8, 2)), 'bias': jnp.ones(2)}}
    with pytest.raises(peftjax.AdapterError, match="'out/bias'"):
        peftjax.save(tmp_path, mlp, lora, adapter, frozen._replace(params=cut))

    def twice(x):
        return 2 * x

    own = peftjax.bottleneck(size=2, targets=r'hidden', activation=twice)
    parts = own.init(jax.random.key(0), mlp)
    with pytest.raises(ValueError, match=r'bottleneck.activation is the function .*twice'):
        peftjax.save(tmp_path, mlp, own, *parts)
    assert not any(tmp_path.iterdir())
    own = own.replace(about=None)
    peftjax.save(tmp_path, mlp, own, *parts)
    assert_same(peftjax.restore(tmp_path, mlp, transform=own), *parts)


def test_a_given_transform_is_compared_with_the_description(tmp_path):
    mlp = MLP()
    positions = {'hidden/kernel': np.asarray([0, 9])}

    def made(alpha, second):
        return peftjax.chain(
            peftjax.lora(rank=2, alpha=alpha, targets=r'out'),
            peftjax.fish_mask({**positions, 'hidden/kernel': np.asarray([0, second])}),
        )

    transform = made(4, 9)
    peftjax.save(tmp_path, mlp, transform, *transform.init(jax.random.key(0), mlp))
    peftjax.restore(tmp_path, mlp, transform=made(4, 9))
    for other, told in [
        (made(5, 9), 'lora.alpha is 4 in the folder and 5 in the transform'),
        (made(4, 8), 'other numbers'),
        (transform.replace(about=None), 'of functions'),
        (peftjax.lora(rank=2, targets=r'out'), 'method'),
    ]:
        with pytest.raises(peftjax.CheckpointError, match=told):
            peftjax.restore(tmp_path, mlp, transform=other)


def test_a_save_that_breaks_off_leaves_nothing_mixed(tmp_path, monkeypatch):
    mlp, transform = MLP(), peftjax.lora(rank=2, targets=r'hidden')
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    peftjax.save(tmp_path, mlp, transform, adapter, frozen)
    names = sorted(path.name for path in tmp_path.iterdir())
    trained = peftjax.testing.perturb(adapter, 0)
    with monkeypatch.context() as patch:
        patch.setattr('peftjax.interop.folder.write.text_of', lambda fields: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            peftjax.save(tmp_path, mlp, transform, trained, frozen)
    assert_same(peftjax.restore(tmp_path, mlp), adapter, frozen)
    write_text = whole.write_text

    def interrupted(path, text):
        write_text(path, text)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(whole, 'write_text', interrupted)
        with pytest.raises(KeyboardInterrupt):
            peftjax.save(tmp_path, mlp, transform, trained, frozen)
    assert_same(peftjax.restore(tmp_path, mlp), adapter, frozen)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
