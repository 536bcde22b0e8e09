"""One row of the GPU benchmark in a separate process, so that its peak memory is measured alone.

    python -m benchmarks.gpu_rows '<row as JSON>'

The last line that it prints is the result as JSON.
"""

import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# By default JAX takes three quarters of the GPU at once. This must be set before it starts.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import numpy as np
import optax

import peftjax
from benchmarks import gpu_attention
from benchmarks.gpu_models import METHODS, abstract_model, batch_of, parameters, random_model
from peftjax import serving

Result = dict[str, Any]


def train(row: dict[str, Any]) -> Result:
    """A training step: its time, its rate, and its measured and planned memory."""
    quantize = 'nf4' if row['method'].startswith('NF4') else None
    transform, optimizer = METHODS[row['method']](), optax.adamw(1e-4)
    shapes = abstract_model(row['shape'], remat=row['remat'], quantize=quantize)
    ids = jax.ShapeDtypeStruct((row['rows'], row['length']), jnp.int32)
    plan = peftjax.plan.plan(shapes, transform, optimizer, {'input_ids': ids, 'targets': ids})
    model = random_model(row['shape'], remat=row['remat'], quantize=quantize)
    batch = batch_of(row['shape'], row['rows'], row['length'])
    step = peftjax.train.make_train_step(_loss(shapes, transform), optimizer)
    adapter = _adapter(transform, model)
    frozen = transform.freeze(model, adapter)
    state = peftjax.train.init_state(adapter, optimizer, jax.random.key(2))
    del model, adapter  # This frees the base of `full`.
    trainable = sum(leaf.size for leaf in jax.tree.leaves(state.adapter))
    compiled, seconds = _compile(jax.jit(step, donate_argnums=0), state, frozen, batch)
    before = _peak()

    def take() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(compiled(state, frozen, batch))
        return float(metrics['loss'])

    times, losses = _times(take, row['steps'])
    tokens = row['rows'] * row['length']
    return {
        **_rates(times, tokens, (6 if row['method'] == 'full' else 4) * parameters(shapes)),
        **_memory(compiled, before),
        'counted_bytes': plan.total,
        'compile_seconds': seconds,
        'trainable': trainable,
        'losses': [losses[0], losses[-1]],
        'kernels': peftjax.plan.kernels(compiled.as_text() or ''),
    }


def sweep(row: dict[str, Any]) -> Result:
    """K runs of the same shape in one program: tokens per second of all runs together."""
    model = random_model(row['shape'], remat=row['remat'], quantize=None)
    transform = METHODS['LoRA q,v']()
    batch = batch_of(row['shape'], row['rows'], row['length'])
    optimizer = optax.adamw(1e-4)
    adapters = [_adapter(transform, model, run) for run in range(row['runs'])]
    states = [peftjax.train.init_state(each, optimizer, jax.random.key(0)) for each in adapters]
    frozen, axes = peftjax.train.share([transform.freeze(model, each) for each in adapters])
    states = peftjax.train.stack(states)
    step = peftjax.train.make_train_step(_loss(model, transform), optimizer)
    many = jax.jit(jax.vmap(step, in_axes=(0, axes, None)), donate_argnums=0)
    count = parameters(model)
    del model, adapters
    compiled, seconds = _compile(many, states, frozen, batch)
    before = _peak()

    def take() -> float:
        nonlocal states
        states, metrics = jax.block_until_ready(compiled(states, frozen, batch))
        return float(metrics['loss'].mean())

    times, losses = _times(take, row['steps'])
    return {
        **_rates(times, row['runs'] * row['rows'] * row['length'], 4 * count),
        **_memory(compiled, before),
        'compile_seconds': seconds,
        'losses': [losses[0], losses[-1]],
    }


def decode(row: dict[str, Any]) -> Result:
    """Many rows that continue a prompt; the time includes the prompt.

    The base answers alone, with one adapter, or with an adapter for each row.
    """
    model = random_model(row['shape'], remat=None, quantize=None)
    transform = METHODS['LoRA q,v']() if row['adapters'] else peftjax.chain()
    adapter = _adapter(transform, model)
    frozen = transform.freeze(model, adapter)
    prompt = batch_of(row['shape'], row['rows'], row['length'])['input_ids']
    if row['adapters'] > 1:
        member = (transform, adapter, frozen)
        bank, frozen = serving.bank(model, [member] * row['adapters'])
        mixed, slots = serving.generator(model), np.arange(row['rows']) % row['adapters'] + 1
        generate = functools.partial(mixed, bank, slots, frozen)
    else:
        generate = functools.partial(peftjax.generator(model, transform), adapter, frozen)

    def take() -> float:
        written = generate(prompt, max_new_tokens=row['new'])
        return float(jax.block_until_ready(written)[0, -1])

    begun = time.perf_counter()
    take()
    seconds = time.perf_counter() - begun
    times, _ = _times(take, row['steps'], warm_up=0)
    middle = statistics.median(times)
    return {
        'ms': 1e3 * middle,
        'ms_spread': [1e3 * min(times), 1e3 * max(times)],
        'ms_per_token': 1e3 * middle / row['new'],
        'tokens_per_second': row['rows'] * row['new'] / middle,
        'peak_bytes': _peak(),
        'compile_seconds': seconds - middle,
    }


def _loss(model: peftjax.Model, transform: peftjax.PeftTransform) -> peftjax.train.LossFunction:
    predict = peftjax.adapt(model, transform)

    def loss(adapter: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:
        return predict(adapter, frozen, **batch, adapter_key=key).losses.mean(), {}

    return loss


@functools.partial(jax.jit, static_argnums=0)
def _adapter(transform: peftjax.PeftTransform, model: peftjax.Model, seed: int = 1) -> Any:
    """The adapter alone, so that the base is not copied."""
    return transform.init(jax.random.key(seed), model)[0]


def _compile(jitted: Any, *arguments: Any) -> tuple[Any, float]:
    begun = time.perf_counter()
    return jitted.lower(*arguments).compile(), time.perf_counter() - begun


def _times(take: Callable[[], float], steps: int, warm_up: int = 2) -> tuple[list[float], list]:
    """Wall seconds of each step after the warm-up, and the results of all steps."""
    times, results = [], []
    for _ in range(warm_up + steps):
        begun = time.perf_counter()
        results.append(take())
        times.append(time.perf_counter() - begun)
    return times[warm_up:], results


def _rates(times: list[float], tokens: int, flops_per_token: int) -> Result:
    middle = statistics.median(times)
    return {
        'ms': 1e3 * middle,
        'ms_spread': [1e3 * min(times), 1e3 * max(times)],
        'tokens_per_second': tokens / middle,
        'model_tflops': flops_per_token * tokens / middle / 1e12,
    }


def _peak() -> int | None:
    """The peak of bytes in use on the device since the process began; None if it is unknown."""
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats.get('peak_bytes_in_use')


def _memory(compiled: Any, before: int | None) -> Result:
    """The measured peak and the compiler's; `peak_before` is the peak while weights were made."""
    memory: Any = compiled.memory_analysis()
    counted = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak = getattr(memory, 'peak_memory_in_bytes', 0)
    on_cpu = jax.devices()[0].platform == 'cpu'
    return {
        'peak_bytes': _peak(),
        'peak_before_bytes': before,
        'compiled_bytes': counted if on_cpu or not peak else peak,
    }


KINDS: dict[str, Callable[[dict[str, Any]], Result]] = {
    'train': train,
    'sweep': sweep,
    'decode': decode,
    'attention': gpu_attention.compare,
}


def main(row: dict[str, Any]) -> None:
    """Measures a row and prints the result."""
    result = KINDS[row['kind']](row)
    result['device'] = jax.devices()[0].device_kind
    print(json.dumps(result), flush=True)


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
