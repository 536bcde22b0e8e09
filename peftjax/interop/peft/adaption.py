"""Adaption prompts of Hugging Face's peft, in and out."""

import re
from typing import Any

import numpy as np

from peftjax.core.entries import Entry
from peftjax.core.paths import exactly
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.prompts import cores
from peftjax.methods.prompts.adaption_prompt import adaption_prompt
from peftjax.models.llama_config import LlamaConfig


def read_adaption(found: Any) -> tuple[Any, Any]:
    """The topmost layers, as many as the config says."""
    config = found.config
    config.get('target_modules')
    count, length = config.whole('adapter_layers'), config.whole('adapter_len')
    kernel = '{}/k_proj/kernel'
    taken: dict[int, dict[str, np.ndarray]] = {}
    for role in ('prompt', 'gate'):
        for name in [name for name in found.tensors if name.endswith(f'.adaption_{role}')]:
            match = re.search(r'\.layers\.(\d+)\.self_attn\.', name)
            if match is None:
                raise CheckpointError(f'{found.where}: {name} is in no attention of a decoder')
            taken.setdefault(int(match[1]), {})[role] = found.tensors.pop(name)[0]
    paths = cores(found.model)
    sites = found.model.sites
    stacked = bool(sites.modules[paths[0]].stack)
    total = sites.modules[paths[0]].stack[0] if stacked else len(paths)
    if sorted(taken) != list(range(total - count, total)) or any(
        len(e) < 2 for e in taken.values()
    ):
        raise CheckpointError(
            f'{found.where} holds prompts of layers {sorted(taken)}, adapter_layers says the '
            f'topmost {count} of {total}'
        )
    if stacked and count < total:
        raise CheckpointError(
            f'{found.where} adapts {count} of {total} layers; write peftjax.load(..., scan=False)'
        )
    if stacked:
        arrays = {
            role: np.stack([taken[layer][role] for layer in sorted(taken)])
            for role in ('prompt', 'gate')
        }
        made = {paths[0]: arrays}
    else:
        made = {paths[layer]: arrays for layer, arrays in taken.items()}
    adapter = {
        path: Entry(
            'adaption_prompt',
            arrays,
            sites.weights[kernel.format(path.removesuffix('/core'))].layout,
        )
        for path, arrays in made.items()
    }
    transform = adaption_prompt(num_virtual_tokens=length, targets=exactly(adapter))
    return transform, adapter


def write_adaption(model: Any, names: Any, arguments: Any, adapter: Any, part: Any) -> Any:
    """A prompt and a gate for each of the topmost layers.

    Raises:
        ValueError: layers that are not the topmost, or a decoder other than Llama and Mistral.
    """
    del names, part
    config = model.config
    # Qwen's attention has biases on some of its matrices, or norms.
    own = (
        isinstance(config, LlamaConfig) and not config.qk_norm and config.qkv_bias == config.o_bias
    )
    if not own:
        raise ValueError(
            'peft has adaption prompts for Llama and Mistral, but not for this model; save it by '
            'peftjax.save'
        )
    ordered = cores(model)
    stack = model.sites.modules[ordered[0]].stack
    total = stack[0] if stack else len(ordered)
    chosen = [path for path in ordered if path in adapter]
    if not stack and chosen != ordered[total - len(chosen) :]:
        raise ValueError(f'peft has adaption prompts at the topmost layers, here are {chosen}')
    tensors = {}
    count = total if stack else len(chosen)
    for number in range(count):
        entry = adapter[chosen[0 if stack else number]]
        name = f'base_model.model.model.layers.{total - count + number}.self_attn.adaption'
        prompt, gate = (np.asarray(entry[each]) for each in ('prompt', 'gate'))
        tensors[f'{name}_prompt'] = (prompt[number] if stack else prompt)[None]
        tensors[f'{name}_gate'] = (gate[number] if stack else gate).reshape(1)
    return tensors, {
        'peft_type': 'ADAPTION_PROMPT',
        'target_modules': 'self_attn',
        'adapter_len': arguments['num_virtual_tokens'],
        'adapter_layers': count,
    }
