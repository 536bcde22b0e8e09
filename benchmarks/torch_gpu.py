"""Rows of `benchmarks.gpu` by torch, transformers and peft, on the same device.

    <a Python with torch, transformers, peft> -m benchmarks.torch_gpu '<row as JSON>'

The last line that it prints is the result as JSON. It does not import peftjax.
"""

import importlib
import importlib.util
import json
import statistics
import sys
import time
from typing import Any

import peft
import torch
import transformers

_TARGETS = {
    'LoRA q,v': ['q_proj', 'v_proj'],
    'NF4, LoRA q,v': ['q_proj', 'v_proj'],
    'LoRA all-linear': 'all-linear',
}


def build(row: dict[str, Any], device: str) -> tuple[torch.nn.Module, int]:
    """The model with random weights, and their number without the adapter.

    Weights are bfloat16 with an adapter, and float32 if all of them train.
    """
    config = transformers.LlamaConfig(**row['config'], use_cache=False)
    if row['method'].startswith('NF4') and importlib.util.find_spec('bitsandbytes') is None:
        raise ImportError('bitsandbytes, which NF4 in torch needs, is not installed')
    full = row['method'] == 'full'
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32 if full else torch.bfloat16,
            attn_implementation=attention(),
        )
    count = sum(leaf.numel() for leaf in model.parameters())
    if row['method'].startswith('NF4'):
        pack(model)
    if row['remat']:
        model.gradient_checkpointing_enable({'use_reentrant': False})
    if not full:
        lora = peft.LoraConfig(r=8, lora_alpha=8, target_modules=_TARGETS[row['method']])
        model = peft.get_peft_model(model, lora)
    return model.train(), count


def attention() -> str:
    """FlashAttention if it is installed, else torch's own attention."""
    return 'sdpa' if importlib.util.find_spec('flash_attn') is None else 'flash_attention_2'


def pack(model: torch.nn.Module) -> None:
    """Replaces all linear layers except the head by NF4 layers of bitsandbytes."""
    layers = importlib.import_module('bitsandbytes').nn
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and name != 'lm_head':
                packed = layers.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=torch.bfloat16,
                    compress_statistics=True,
                    quant_type='nf4',
                )
                packed.weight = layers.Params4bit(
                    child.weight.data.cpu(), requires_grad=False, quant_type='nf4'
                )
                setattr(parent, name, packed.to(child.weight.device))


def measure(row: dict[str, Any], device: str) -> dict[str, Any]:
    """Times and memory of the step, with mixed precision and fused AdamW, without clipping."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision('high')
    model, count = build(row, device)
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device == 'cuda')
    shape = (row['rows'], row['length'])
    ids = torch.randint(0, row['config']['vocab_size'], shape, device=device)
    times, losses = [], []
    for _ in range(2 + row['steps']):
        begun = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    times = times[2:]
    middle = statistics.median(times)
    tokens = row['rows'] * row['length']
    flops = (6 if row['method'] == 'full' else 4) * count * tokens / middle
    return {
        'ms': 1e3 * middle,
        'ms_spread': [1e3 * min(times), 1e3 * max(times)],
        'tokens_per_second': tokens / middle,
        'model_tflops': flops / 1e12,
        'peak_bytes': torch.cuda.max_memory_allocated() if device == 'cuda' else None,
        'trainable': sum(leaf.numel() for leaf in trained),
        'losses': [losses[0], losses[-1]],
        'attention': attention(),
        'device': torch.cuda.get_device_name() if device == 'cuda' else device,
        'versions': {each.__name__: each.__version__ for each in (torch, transformers, peft)},
    }


def decode(row: dict[str, Any], device: str) -> dict[str, Any]:
    """Times and memory of generation with an adapter for each row, including the prompt."""
    torch.manual_seed(0)
    model, _ = build(row, device)
    names = ['default', *(f'adapter{number}' for number in range(1, row['adapters']))]
    for name in names[1:]:
        model.add_adapter(name, model.peft_config['default'])
    model.eval()
    model.config.use_cache = True
    ids = torch.randint(1, row['config']['vocab_size'], (row['rows'], row['length']), device=device)
    given = {'input_ids': ids, 'attention_mask': torch.ones_like(ids), 'do_sample': False}
    given |= {'adapter_names': [names[i % len(names)] for i in range(row['rows'])]}
    given |= {'min_new_tokens': row['new'], 'max_new_tokens': row['new'], 'pad_token_id': 0}
    times = []
    for _ in range(1 + row['steps']):
        begun = time.perf_counter()
        with torch.inference_mode():
            model.generate(**given)
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    middle = statistics.median(times[1:])
    return {
        'ms': 1e3 * middle,
        'ms_spread': [1e3 * min(times[1:]), 1e3 * max(times[1:])],
        'ms_per_token': 1e3 * middle / row['new'],
        'tokens_per_second': row['rows'] * row['new'] / middle,
        'peak_bytes': torch.cuda.max_memory_allocated() if device == 'cuda' else None,
        'device': torch.cuda.get_device_name() if device == 'cuda' else device,
    }


if __name__ == '__main__':
    there, told = 'cuda' if torch.cuda.is_available() else 'cpu', json.loads(sys.argv[1])
    kinds = {'train': measure, 'decode': decode}
    print(json.dumps(kinds[told['kind']](told, there)), flush=True)
