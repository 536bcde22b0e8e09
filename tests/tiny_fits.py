"""Models and a task of one's own, small enough to fit in a test."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import peftjax
from peftjax.train.fitting import fit
from peftjax.train.task import Metric, Task


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name='out')(nn.tanh(nn.Dense(8, name='hidden')(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


def wrapped(kind):
    """The model in Linen or in NNX."""
    x = jnp.ones((8, 4))
    if kind == 'nnx':
        return peftjax.wrap(NnxNet(nnx.Rngs(0)), None, {'x': x})
    net = LinenNet()
    return peftjax.wrap(net, net.init(jax.random.key(0), x), {'x': x})


def rows(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    return [{'x': a, 'y': b, 'weights': np.float32(1)} for a, b in zip(x, y, strict=True)]


def totals(forward, batch):
    logits = forward({'x': batch['x']})
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
    return {'loss': (losses * batch['weights']).sum(), 'weights': batch['weights'].sum()}


def outputs(forward, batch):
    return {'right': forward({'x': batch['x']}).argmax(-1) == batch['y']}


RIGHT = Metric('right', lambda kept: float(np.mean(kept['right'])))
TASK = Task(
    splits={'train': rows(40, 0), 'validation': rows(21, 1), 'test': rows(10, 2)},
    totals=totals,
    outputs=outputs,
    metrics=(RIGHT,),
    best='right',
    batch_size=8,
    eval_batch_size=8,
)
TX = peftjax.lora(rank=2, targets=r'.*kernel')
OFTEN = {'log_every': '1 step', 'eval_every': '2 steps', 'save_every': '3 steps'}


def own_optimizer():
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.lion(optax.cosine_decay_schedule(1e-2, 9))
    )


def run(model, task=TASK, transform=TX, duration='9 steps', **options):
    options = {'optimizer': own_optimizer(), **OFTEN, **options}
    return fit(model, transform, task, duration=duration, **options)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
