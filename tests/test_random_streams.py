"""Random streams of NNX modules take keys by name, and no call draws the same for ever."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import peftjax

KEY = jax.random.key(0)


class _Dropped(nnx.Module):
    def __init__(self, **streams):
        rngs = nnx.Rngs(**streams) if streams else nnx.Rngs(0)
        self.dense = nnx.Linear(4, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.dense(x))


@pytest.mark.parametrize('streams', [{}, {'params': 0, 'dropout': 1}], ids=['one', 'two'])
def test_random_streams_of_nnx_are_named_as_linens_are(streams):
    x = jnp.ones((2, 4))
    model = peftjax.wrap(_Dropped(**streams), None, x)
    tx = peftjax.lora(rank=2, targets='dense')
    adapter, frozen = tx.init(KEY, model)
    predict = peftjax.adapt(model, tx)
    keys = jax.random.split(KEY)
    for rngs in ([{'dropout': key} for key in keys], list(keys)):
        one, other = (predict(adapter, frozen, x, rngs=each) for each in rngs)
        assert not jnp.array_equal(one, other)
        assert jnp.array_equal(one, predict(adapter, frozen, x, rngs=rngs[0]))
    with pytest.raises(ValueError, match='would draw the same at every call'):
        predict(adapter, frozen, x)
    if streams:
        with pytest.raises(ValueError, match=r"keys for \['noise'\].*\['dropout'\]"):
            predict(adapter, frozen, x, rngs={'noise': KEY})
