"""What a transform does not make again is in the folder by value, and nothing else."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

import peftjax
from peftjax.interop.folder import arrays as files
from tests.saved_folders import MLP, assert_same, round_trip


def test_a_changed_scale_is_kept_by_value(tmp_path):
    mlp, transform = MLP(), peftjax.lora(rank=2, alpha=4, targets=r'.*/kernel')
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    round_trip(tmp_path, mlp, transform, adapter, frozen)
    assert not (tmp_path / 'frozen.safetensors').exists()
    scaled = {**frozen.own['out/kernel'], 'scale': jnp.float32(7.0)}
    own = frozen.own.replace(**{'out/kernel': scaled})
    round_trip(tmp_path, mlp, transform, adapter, frozen._replace(own=own))
    assert json.loads((tmp_path / 'peftjax.json').read_text())['own'] == ['out/kernel/scale']
    round_trip(tmp_path, mlp, transform, adapter, frozen)
    assert not (tmp_path / 'frozen.safetensors').exists(), 'what an older save left'
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'adapter.safetensors',
        'peftjax.json',
    ]


def test_frozen_leaves_that_differ_are_kept_by_value(tmp_path):
    mlp, transform = MLP(), peftjax.lora(rank=2, targets=r'out')
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    changed = {
        **frozen.params,
        'hidden': peftjax.quantize(mlp, 'int8', targets='hidden').params['hidden'],
    }
    changed['out'] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), changed['out'])
    restored = round_trip(tmp_path, mlp, transform, adapter, frozen._replace(params=changed))
    assert isinstance(restored.frozen.params['hidden']['kernel'], peftjax.QuantizedArray)


@pytest.mark.parametrize('init', ['pissa', 'olora'])
def test_what_is_left_of_the_weights(init, tmp_path, monkeypatch):
    mlp = MLP()
    transform = peftjax.chain(
        peftjax.select(r'.*/bias'), peftjax.lora(rank=2, init=init, targets=r'.*/kernel')
    )
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    trained = peftjax.testing.perturb(adapter, 0)
    round_trip(tmp_path / 'small', mlp, transform, trained, frozen)
    round_trip(tmp_path / 'whole', mlp, transform, trained, frozen, whole=True)
    # Compiled as a whole, or changed: by value.
    compiled = jax.jit(transform.init)(jax.random.key(0), mlp)[1]
    round_trip(tmp_path / 'other', mlp, transform, trained, compiled)
    written = {
        name: json.loads((tmp_path / name / 'peftjax.json').read_text())['params']
        for name in ('small', 'whole')
    }
    assert not written['small']['values'] and len(written['small']['samples']) == 2
    assert len(written['whole']['values']) == 4 and not written['whole']['samples']
    # On a machine whose decompositions come out otherwise.
    for name in ('svd', 'qr'):
        real = getattr(jnp.linalg, name)
        other = functools.partial(lambda real, x, **options: real(x + 1.0, **options), real)
        monkeypatch.setattr(jnp.linalg, name, other)
    again = transform.freeze(mlp, trained).params
    assert not files.same(again['out']['kernel'], frozen.params['out']['kernel'])
    assert_same(peftjax.restore(tmp_path / 'small', mlp), trained, frozen)
    monkeypatch.undo()
    path = tmp_path / 'small' / 'peftjax.json'
    fields = json.loads(path.read_text())
    fields['params']['samples']['out/kernel'][3] += 0.01
    path.write_text(json.dumps(fields))
    with pytest.raises(peftjax.CheckpointError, match=r"'out/kernel'.*whole=True"):
        peftjax.restore(tmp_path / 'small', mlp)


def test_codes_of_loftq_are_kept(tmp_path, monkeypatch):
    mlp = MLP()
    transform = peftjax.loftq(
        rank=1, scheme=peftjax.NF4(block=4, double=False), iterations=1, targets=r'out'
    )
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    peftjax.save(tmp_path, mlp, transform, adapter, frozen)
    monkeypatch.setattr(peftjax.PeftTransform, 'remaining', None)  # Nothing is quantised again.
    assert_same(peftjax.restore(tmp_path, mlp), adapter, frozen)
