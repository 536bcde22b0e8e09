"""The worker of `benchmarks.step_time` for peftjax: real arrays, random weights.

python -m benchmarks.jax_step_time '<task as JSON>'
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from benchmarks import turns
from benchmarks.cases import program, workload
from peftjax.train import init_state


def batch_arrays(shapes: Any, task: dict[str, Any]) -> Any:
    """The batch that both sides train on: see `benchmarks.torch_step_time.batch_arrays`."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, task['vocab_size'], task['shape'])
    batch: dict[str, Any] = {'inputs': {'input_ids': jnp.asarray(ids, jnp.int32)}}
    if 'labels' in shapes:
        batch['inputs']['attention_mask'] = jnp.ones(task['shape'], jnp.int32)
        batch['labels'] = jnp.asarray(rng.integers(0, 2, task['shape'][0]), jnp.int32)
    return batch


def main(task: dict[str, Any]) -> None:
    """Builds the step and serves it."""
    # JAX makes its threads on first use, which is below.
    turns.use_cores(task['cores'])
    work = workload(task['family'], task['size'], scan=task['scan'])
    transform = work.methods[task['method']].transform
    batch = batch_arrays(work.batch, task)
    variables = jax.jit(lambda key: work.module.init(key, **batch['inputs']))(jax.random.key(0))
    model = peftjax.wrap(work.module, variables, batch['inputs'])
    made = program(work, transform, task['route'])
    step = jax.jit(made.function, donate_argnums=0)
    adapter = jax.jit(lambda key, model: transform.init(key, model)[0])(jax.random.key(1), model)
    frozen = transform.freeze(model, adapter)
    trainable = sum(leaf.size for leaf in jax.tree.leaves(adapter))
    state = init_state(adapter, made.optimizer, jax.random.key(2))
    del variables, adapter, model

    def take() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, frozen, batch))
        return float(metrics['loss'])

    turns.serve(take, trainable, task['warm_up'])


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
