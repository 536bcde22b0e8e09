"""Adapters of Hugging Face's peft on bases that were enlarged by four tokens before.

pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
"""

from pathlib import Path

import peft
import torch

from tests.golden.make.files import GOLDEN, Arrays, base_of, draw, inputs_of, run, write

SIZE, IDS = 36, [32, 33, 34, 35]
SETTINGS = {
    'whole': {},
    'rows': {'trainable_token_indices': IDS},
    'rows_and_tables': {'trainable_token_indices': IDS},
    'rows_of_both': {'trainable_token_indices': {'embed_tokens': IDS, 'lm_head': IDS[::-1]}},
}


def make(folder: Path) -> dict[str, Arrays]:
    if not (folder / 'adapter_model.safetensors').is_file():
        _draw(folder)
    adapted = peft.get_peft_model(_enlarged(folder), peft.PeftConfig.from_pretrained(folder)).eval()
    peft.set_peft_model_state_dict(adapted, peft.load_peft_weights(str(folder), device='cpu'))
    with torch.no_grad():
        logits = adapted(**inputs_of(folder)).logits
    return {'logits.npz': {'logits': logits.numpy()}}


def _enlarged(folder: Path) -> torch.nn.Module:
    model = base_of(GOLDEN / folder.parent.name / 'base')
    torch.manual_seed(0)
    model.resize_token_embeddings(SIZE)
    return model


def _draw(folder: Path) -> None:
    model = _enlarged(folder)
    tables = {each.weight for each in (model.get_input_embeddings(), model.get_output_embeddings())}
    whole = folder.name in ('whole', 'rows_and_tables')
    draw(folder, [('tables', each) for each in tables] if whole else [])
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=2,
            lora_alpha=4,
            target_modules=['q_proj'],
            task_type='CAUSAL_LM',
            **SETTINGS[folder.name],
        ),
    )
    draw(folder, [each for each in adapted.named_parameters() if each[1].requires_grad])
    adapted.save_pretrained(folder, save_embedding_layers=whole)
    (folder / 'README.md').unlink()
    config = folder / 'adapter_config.json'
    config.write_text(config.read_text().replace(str(GOLDEN.resolve()), 'golden') + '\n')
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, :3], mask[1, 9:] = 0, 0
    ids = torch.randint(1, SIZE, (2, 12))
    inputs = {'input_ids': ids, 'attention_mask': mask}
    write(folder / 'inputs.npz', {name: value.numpy() for name, value in inputs.items()})


if __name__ == '__main__':
    cases = (
        *('llama/whole', 'llama/rows_and_tables', 'llama/rows_of_both'),
        *('llama_tied/whole', 'llama_tied/rows', 'llama_tied/rows_and_tables'),
    )
    run(make, [GOLDEN / 'new_tokens' / f'tiny_{case}' for case in cases])
