"""Which checkpoint of a run is the best."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
import peftjax.train


def totals(forward, batch):
    logits = forward({'x': batch['x']})
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
    return {'loss': losses.sum(), 'weights': jnp.float32(len(losses))}


@pytest.mark.parametrize('best', ['loss', '-loss', None])
def test_a_loss_is_best_when_it_is_least_with_and_without_a_minus(best):
    rows = [{'x': np.full(4, i % 2, np.float32), 'y': np.int32(i % 2)} for i in range(16)]
    task = peftjax.train.Task(
        splits={'train': rows, 'validation': rows}, totals=totals, batch_size=8
    )
    method = peftjax.lora(rank=2, targets='hidden')
    options = {'optimizer': optax.adam(1e-2), 'duration': '6 steps', 'eval_every': '2 steps'}
    done = peftjax.train.fit(peftjax.testing.tiny_mlp(), method, task, best=best, **options)
    assert done.result['best_step'] == 6
    assert done.result['best/validation/loss'] == done.result['validation/loss']
