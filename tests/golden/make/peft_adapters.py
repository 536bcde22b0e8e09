"""Adapters of Hugging Face's peft on the checkpoints beside them.

pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 scipy
"""

import contextlib
import json
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file

from tests.golden.make.files import GOLDEN, Arrays, base_of, draw, inputs_of, run, write


def make(folder: Path) -> dict[str, Arrays]:
    if not (folder / 'adapter_model.safetensors').is_file():
        _draw(folder)
    inputs = inputs_of(folder)
    adapted = _adapted(folder)
    output = adapted(**inputs)
    found = {'logits': output.logits.detach().numpy()}
    files = {'logits.npz': found}
    if folder.parent.name.startswith('t5_'):
        read = {name: inputs[name] for name in ('input_ids', 'attention_mask')}
        with torch.no_grad():
            written = adapted.generate(**read, max_new_tokens=8, do_sample=False, num_beams=1)
        found['written'] = written[:, 1:].numpy()
    if 'labels' in inputs:
        output.loss.backward()
        found['loss'] = output.loss.detach().numpy()
        files['grads.safetensors'] = {
            _short(name): parameter.grad.numpy()
            for name, parameter in adapted.named_parameters()
            if parameter.grad is not None
        }
        # What depends on the tokens has no merged weight.
        merges = not getattr(adapted.active_peft_config, 'alora_invocation_tokens', None)
        if merges and isinstance(adapted.base_model, peft.tuners.tuners_utils.BaseTuner):
            # Nor has a LoRA with a bias beside a layer without one.
            with torch.no_grad(), contextlib.suppress(RuntimeError):
                found['merged_logits'] = adapted.merge_and_unload()(**inputs).logits.numpy()
    return files


def _fresh(folder: Path) -> torch.nn.Module:
    config = peft.PeftConfig.from_pretrained(folder)
    config.inference_mode = False
    return peft.get_peft_model(base_of(folder), config)


def _draw(folder: Path) -> None:
    said = (folder / 'adapter_config.json').read_text()
    adapted = _fresh(folder)
    trained = [each for each in adapted.named_parameters() if each[1].requires_grad]
    # A magnitude stays near the length that it stands for.
    draw(folder, [each for each in trained if 'magnitude' not in each[0]])
    if adapted.active_peft_config.peft_type == 'P_TUNING':  # The file holds what it makes.
        write(folder / 'encoder.safetensors', {_short(n): p.detach().numpy() for n, p in trained})
    adapted.save_pretrained(folder)
    (folder / 'README.md').unlink()
    written = json.loads((folder / 'adapter_config.json').read_text()) | json.loads(said)
    (folder / 'adapter_config.json').write_text(
        json.dumps(written, indent=2, sort_keys=True, ensure_ascii=False) + '\n'
    )


def _adapted(folder: Path) -> torch.nn.Module:
    """The adapter of the files; by all that was trained where its prompt's encoder is kept."""
    adapted, encoder = _fresh(folder).eval(), folder / 'encoder.safetensors'
    if not encoder.is_file():
        peft.set_peft_model_state_dict(adapted, peft.load_peft_weights(folder, device='cpu'))
        return adapted
    kept = load_file(encoder)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.data = kept[_short(name)]
    return adapted


def _short(name: str) -> str:
    """A parameter's name without that of the adapter."""
    return name.replace('.default', '').removeprefix('prompt_encoder.')


def folders() -> list[Path]:
    found = [path.parent for path in GOLDEN.glob('*/*/adapter_config.json')]
    return sorted(folder for folder in found if folder.parents[1] == GOLDEN)


if __name__ == '__main__':
    run(make, folders())
