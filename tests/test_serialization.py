"""Adapters through `flax.serialization`: the same numbers, and no others in their place."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import peftjax
from tests.algebra import KEY, X, assert_raises, mlp

OTHER = jax.random.key(1)
METHODS = {
    'lora': lambda: peftjax.lora(rank=2, targets=r'.*'),
    'bfloat16': lambda: peftjax.lora(rank=2, targets=r'hidden', dtype=jnp.bfloat16),
    'chain': lambda: peftjax.chain(
        peftjax.select(r'.*/bias'), peftjax.dora(rank=2, targets=r'hidden')
    ),
    'named chain': lambda: peftjax.named_chain(
        {'low': peftjax.lora(rank=2, targets=r'hidden'), 'after': peftjax.ia3(targets=r'out')}
    ),
    'full': peftjax.full,
    'intrinsic': lambda: peftjax.intrinsic(dimension=9, structure_aware=True),
    'subspace without scales': lambda: peftjax.intrinsic(dimension=9),
    'dense subspace': lambda: peftjax.intrinsic(dimension=9, projection='dense'),
    'bottleneck': lambda: peftjax.bottleneck(size=2, targets=r'hidden'),
}


def assert_same(mine, theirs):
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('method', METHODS)
def test_an_adapter_comes_back(method):
    tx = METHODS[method]()
    adapter, frozen = tx.init(KEY, mlp())
    adapter = peftjax.testing.perturb(adapter, 0)
    back = serialization.from_bytes(tx.init(OTHER, mlp())[0], serialization.to_bytes(adapter))
    assert_same(back, adapter)
    predict = peftjax.adapt(mlp(), tx)
    np.testing.assert_array_equal(predict(back, frozen, X), predict(adapter, frozen, X))


@pytest.mark.parametrize('quantized', [False, True])
def test_a_training_state_and_what_is_frozen_come_back(quantized):
    model = peftjax.quantize(mlp(), 'int8', targets=r'hidden') if quantized else mlp()
    tx = peftjax.chain(peftjax.select(r'out/.*'), peftjax.lora(rank=2, targets=r'hidden'))
    adapter, frozen = tx.init(KEY, model)
    state = {'adapter': adapter, 'moments': optax.adam(1e-3).init(adapter), 'frozen': frozen}
    fresh = jax.tree.map(jnp.zeros_like, state)
    assert_same(serialization.from_bytes(fresh, serialization.to_bytes(state)), state)


@pytest.mark.parametrize(
    ('written', 'read', 'said'),
    [
        ('lora', lambda: peftjax.hira(rank=2, targets=r'.*'), ("['lora']", 'adapter of hira')),
        ('lora', lambda: peftjax.lora(rank=3, targets=r'.*'), ('a of (4, 2)', 'of (4, 3)')),
        ('full', lambda: peftjax.select(r'.*/bias'), ('hidden/kernel', "['hidden/bias', 'out/b")),
        ('intrinsic', lambda: peftjax.intrinsic(dimension=9), ('theta of (5,)', 'of (9,)')),
    ],
)
def test_an_adapter_of_another_transform_is_refused(written, read, said):
    data = serialization.to_bytes(METHODS[written]().init(KEY, mlp())[0])
    fresh = read().init(KEY, mlp())[0]
    assert_raises(peftjax.AdapterError, lambda: serialization.from_bytes(fresh, data), *said)


def test_importing_peftjax_does_not_import_flax():
    code = "import sys, peftjax; print('flax' in sys.modules)"
    root = Path(peftjax.__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == 'False', done.stderr


def test_a_subspace_of_other_leaves_is_refused():
    few, all_ = (peftjax.intrinsic(dimension=5, targets=t) for t in (r'out/.*', r'.*'))
    model = peftjax.testing.tiny_mlp()
    (mine, _), (theirs, _) = (tx.init(jax.random.key(0), model) for tx in (few, all_))
    state = serialization.to_bytes(mine)
    again = jax.tree.structure(serialization.from_bytes(mine, state))
    assert again == jax.tree.structure(mine)
    with pytest.raises(peftjax.AdapterError, match='restore into an adapter'):
        serialization.from_bytes(theirs, state)
