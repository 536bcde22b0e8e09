"""A mixed batch by Hugging Face `peft`, for `benchmarks.mixed_batches`.

    <a Python with torch, transformers, peft> -m benchmarks.torch_mixed_batches '<task as JSON>'

None of the three is a dependency of peftjax, and this file does not import peftjax.
"""

import itertools
import json
import sys
from typing import Any

import numpy as np
import peft
import torch
import transformers

from benchmarks import turns


def main(task: dict[str, Any]) -> None:
    """Serves forward passes that alternate: a mixed batch, then one adapter."""
    turns.use_cores(task['cores'])
    torch.set_num_threads(task['cores'])
    torch.manual_seed(0)
    config = transformers.BertConfig(**task['config'], attn_implementation='sdpa')
    names = [f'adapter{number}' for number in range(task['rows'])]
    lora = peft.LoraConfig(
        r=8,
        lora_alpha=8,
        target_modules=r'.*encoder\.layer.*(query|key|value|dense)',
        init_lora_weights=False,
    )
    model = peft.get_peft_model(transformers.BertModel(config), lora, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, lora)
    model.eval()
    ids = np.random.default_rng(0).integers(0, 200, (task['rows'], task['length']))
    inputs = {'input_ids': torch.from_numpy(ids)}
    inputs['attention_mask'] = torch.ones_like(inputs['input_ids'])
    mixed = itertools.cycle((True, False))

    def take() -> float:
        with torch.inference_mode():
            given = {'adapter_names': names} if next(mixed) else {}
            return float(model(**inputs, **given).last_hidden_state[0, 0, 0])

    turns.serve(take, 0, 2)


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
