"""Writes families/<variant>-<method>/: adapters of Hugging Face's peft on the tiny checkpoints.

Made with torch 2.13.0, transformers 5.23.0 and peft 0.21.2: python tests/golden/make_families.py
Each holds adapter_config.json, adapter_model.safetensors and logits.npy, for the inputs and the
base of tiny_<variant>.npz.
"""

import json
import pathlib
import tempfile

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
ATTENTION = ['q_proj', 'v_proj']
LORA = {'r': 2, 'lora_alpha': 6}
CASES = {
    'vit-lora': (
        'ViTForImageClassification',
        peft.LoraConfig(**LORA, target_modules=[*ATTENTION, 'fc1'], modules_to_save=['classifier']),
    ),
    'dinov2-dora': (
        'Dinov2ForImageClassification',
        peft.LoraConfig(**LORA, target_modules=[*ATTENTION, 'fc2'], use_dora=True),
    ),
    'gemma2-lora': (
        'Gemma2ForCausalLM',
        peft.LoraConfig(**LORA, target_modules='all-linear', task_type='CAUSAL_LM'),
    ),
    'gemma3-lokr': (
        'Gemma3ForCausalLM',
        peft.LoKrConfig(r=2, alpha=6, target_modules=ATTENTION, task_type='CAUSAL_LM'),
    ),
    'qwen3-oft': (
        'Qwen3ForCausalLM',
        peft.OFTConfig(r=0, oft_block_size=4, target_modules=ATTENTION, task_type='CAUSAL_LM'),
    ),
    'mistral-prompt': (
        'MistralForCausalLM',
        peft.PromptTuningConfig(num_virtual_tokens=3, task_type='CAUSAL_LM'),
    ),
    'roberta-lora': (
        'RobertaForSequenceClassification',
        peft.LoraConfig(**LORA, target_modules='all-linear', task_type='SEQ_CLS'),
    ),
    'roberta-prefix': (
        'RobertaForSequenceClassification',
        peft.PrefixTuningConfig(num_virtual_tokens=3, task_type='SEQ_CLS'),
    ),
    'bert_tokens-lora': (
        'BertForTokenClassification',
        peft.LoraConfig(**LORA, target_modules=['query', 'value'], task_type='TOKEN_CLS'),
    ),
    't5-ia3': (
        'T5ForConditionalGeneration',
        peft.IA3Config(
            target_modules=['k', 'v', 'wo'], feedforward_modules=['wo'], task_type='SEQ_2_SEQ_LM'
        ),
    ),
    # No task: peft's own wrapper for it names its input input_ids.
    'whisper-lora': (
        'WhisperForConditionalGeneration',
        peft.LoraConfig(**LORA, target_modules=[*ATTENTION, 'fc1']),
    ),
}


def main() -> None:
    for name, (kind, config) in CASES.items():
        with np.load(HERE / f'tiny_{name.partition("-")[0]}.npz') as file:
            arrays = dict(file)
        inputs = {
            key.removeprefix('inputs/'): torch.tensor(
                value if value.dtype == np.float32 else value.astype(np.int64)
            )
            for key, value in arrays.items()
            if key.startswith('inputs/')
        }
        weights = {k.removeprefix('weights/'): v for k, v in arrays.items() if '/' in k}
        with tempfile.TemporaryDirectory() as base:
            pathlib.Path(base, 'config.json').write_text(str(arrays['config']))
            save_file(
                {k: np.ascontiguousarray(v) for k, v in weights.items() if 'inputs' not in k},
                pathlib.Path(base, 'model.safetensors'),
                metadata={'format': 'pt'},
            )
            model = getattr(transformers, kind).from_pretrained(base, attn_implementation='eager')
            torch.manual_seed(0)
            adapted = peft.get_peft_model(model, config).eval()
            for parameter_name, parameter in adapted.named_parameters():
                if parameter.requires_grad and 'magnitude' not in parameter_name:
                    centre = 1.0 if 'ia3' in parameter_name else 0.0
                    torch.nn.init.normal_(parameter, centre, 0.3)
            with torch.no_grad():
                logits = adapted(**inputs).logits.numpy()
            folder = HERE / 'families' / name
            adapted.save_pretrained(folder)
        (folder / 'README.md').unlink()
        path = folder / 'adapter_config.json'
        written = json.loads(path.read_text()) | {'base_model_name_or_path': 'base'}
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + '\n')
        np.save(folder / 'logits.npy', logits)


if __name__ == '__main__':
    main()
