"""The same step by Hugging Face `transformers` and `peft`, for `benchmarks.step_time`.

    <a Python with torch, transformers, peft> -m benchmarks.torch_step_time '<task as JSON>'

None of the three is a dependency of peftjax, and this file does not import peftjax.
"""

import json
import sys
from typing import Any

import numpy as np
import peft
import torch
import transformers

from benchmarks import turns

_TARGETS = {
    ('llama', 'LoRA r=8, q v'): r'.*(q_proj|v_proj)',
    ('llama', 'LoRA r=8, all-linear'): r'.*_proj',
    ('bert', 'LoRA r=8, q v'): r'.*(query|value)',
    ('bert', 'LoRA r=8, all-linear'): r'.*encoder\.layer.*(query|key|value|dense)',
}


def build(task: dict[str, Any]) -> torch.nn.Module:
    """The model with random weights and the task's method, in training mode without dropout."""
    if task['family'] == 'llama':
        config = transformers.LlamaConfig(**task['config'], attn_implementation='sdpa')
        model = transformers.LlamaForCausalLM(config)
    else:
        dropout = {'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}
        config = transformers.BertConfig(
            **task['config'] | dropout, num_labels=2, attn_implementation='sdpa'
        )
        model = transformers.BertForSequenceClassification(config)
    if task['method'] != 'full':
        kind = 'CAUSAL_LM' if task['family'] == 'llama' else 'SEQ_CLS'
        targets = _TARGETS[task['family'], task['method']]
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets, task_type=kind)
        )
    return model.train()


def batch_arrays(task: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The batch that both sides train on, drawn by NumPy in the same order."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, task['vocab_size'], task['shape']))
    if task['family'] == 'llama':
        return {'input_ids': ids, 'labels': ids}
    labels = torch.from_numpy(rng.integers(0, 2, task['shape'][0]))
    return {'input_ids': ids, 'attention_mask': torch.ones_like(ids), 'labels': labels}


def main(task: dict[str, Any]) -> None:
    """Builds the step and serves it."""
    turns.use_cores(task['cores'])
    torch.set_num_threads(task['cores'])
    torch.manual_seed(0)
    model, batch = build(task), batch_arrays(task)
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    # The faster of torch's two implementations on a CPU.
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-4, fused=True)

    def take() -> float:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    turns.serve(take, sum(leaf.numel() for leaf in trained), task['warm_up'])


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
