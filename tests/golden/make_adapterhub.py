"""Writes adapterhub/<base>-<method>/: adapters of the adapters library on the reference bases.

Made with torch 2.13.0, transformers 4.57.6 and adapters 1.3.0: python
tests/golden/make_adapterhub.py. Each holds adapter_config.json, adapter.safetensors and
outputs.npz: what the model takes, and its logits or, of BERT, its last hidden states.
"""

import json
import pathlib
import shutil
import tempfile

import adapters
import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
LORA = {'r': 4, 'alpha': 6}
CASES = {
    'bert-dora': adapters.LoRAConfig(**LORA, use_dora=True),
    'bert-vera': adapters.LoRAConfig(**LORA, init_weights='vera', vera_d=0.1, vera_b=0.0),
    'bert-prompt_tuning': adapters.PromptTuningConfig(prompt_length=3),
    'bert-prompt_after_bos': adapters.PromptTuningConfig(
        prompt_length=2, combine='prefix_after_bos'
    ),
    'bert-loreft': adapters.LoReftConfig(r=2, prefix_positions=2, suffix_positions=1),
    'bert-seq_bn_inv': adapters.SeqBnInvConfig(reduction_factor=4),
    'llama-dora': adapters.LoRAConfig(**LORA, use_dora=True, attn_matrices=['q', 'k']),
    'llama-dora_unscaled': adapters.LoRAConfig(r=4, alpha=4, use_dora=True),
    'llama-loreft': adapters.LoReftConfig(r=2, tied_weights=True, suffix_positions=2),
    'llama-seq_bn_inv': adapters.SeqBnInvConfig(reduction_factor=4),
    # In a class of the library's own, whose head undoes the invertible adapter.
    'llama-seq_bn_inv_flexible': adapters.DoubleSeqBnInvConfig(reduction_factor=4),
}


def model_of(name: str) -> torch.nn.Module:
    base = HERE / 'oracle' / name.split('-')[0] / 'base'
    if name.startswith('bert'):
        kind = transformers.BertForSequenceClassification
    else:
        kind = transformers.LlamaForCausalLM
    model = kind.from_pretrained(base, attn_implementation='eager')
    if not name.endswith('flexible'):
        adapters.init(model)
        return model
    flexible = adapters.LlamaAdapterModel.from_pretrained(base, attn_implementation='eager')
    flexible.add_causal_lm_head('head', layers=1, activation_function=None)
    flexible.heads['head'][-1].weight.data = model.lm_head.weight.data
    return flexible


@torch.no_grad()
def make(name: str, config: adapters.AdapterConfig) -> None:
    torch.manual_seed(sorted(CASES).index(name))
    model = model_of(name)
    model.add_adapter('a', config=config)
    model.set_active_adapters('a')
    for key, value in model.named_parameters():
        if '.a.' not in key and '.a_' not in key:
            continue
        noise = 0.3 * torch.randn_like(value)
        # Of an orthonormal matrix the part that its reflections are made of; the diagonal is signs.
        value += noise.triu(1) if key.endswith('parametrizations.weight.original') else noise
    model.eval()
    source = HERE / 'oracle' / 'adapters' / name.split('-')[0] / 'compacter' / 'inputs.npz'
    with np.load(source) as file:
        inputs = {key: file[key] for key in file if key != 'labels'}
    given = {key: torch.tensor(value) for key, value in inputs.items()}
    outputs = model(**given, output_hidden_states=True)
    states = outputs.hidden_states[-1] if name.startswith('bert') else outputs.logits
    folder = HERE / 'adapterhub' / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as saved:
        model.save_adapter(saved, 'a', use_safetensors=True, with_head=False)
        shutil.copyfile(pathlib.Path(saved, 'adapter.safetensors'), folder / 'adapter.safetensors')
        said = json.loads(pathlib.Path(saved, 'adapter_config.json').read_text())
    said['model_name'] = ''
    (folder / 'adapter_config.json').write_text(json.dumps(said, indent=2) + '\n')
    np.savez_compressed(folder / 'outputs.npz', outputs=states.numpy(), **inputs)


if __name__ == '__main__':
    for name, config in CASES.items():
        make(name, config)
