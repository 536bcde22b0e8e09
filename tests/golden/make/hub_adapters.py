"""Adapters of AdapterHub's library on the checkpoints llama and bert.

pip install torch==2.13.0 transformers==4.57.6 adapters==1.3.0
"""

import json
import tempfile
from pathlib import Path

import adapters
import torch

from tests.golden.make.files import GOLDEN, Arrays, base_of, draw, inputs_of, run, write


def make(folder: Path) -> dict[str, Arrays]:
    said = json.loads((folder / 'adapter_config.json').read_text())
    if not (folder / 'adapter.safetensors').is_file():
        _draw(folder, said)
    model = _model_of(folder, said)
    name = model.load_adapter(str(folder), load_as=said['name'], use_safetensors=True)
    model.set_active_adapters(name)
    model.train_adapter(name)
    model.eval()
    inputs = inputs_of(folder)
    output = model(**inputs, output_hidden_states=True)
    if folder.parent.name == 'bert':  # A file has no head.
        return {'logits.npz': {'last_hidden_state': output.hidden_states[-1].detach().numpy()}}
    if 'labels' not in inputs:
        return {'logits.npz': {'logits': output.logits.detach().numpy()}}
    output.loss.backward()
    found = {'logits': output.logits.detach().numpy(), 'loss': output.loss.detach().numpy()}
    gradients = {
        name: parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {'logits.npz': found, 'grads.safetensors': gradients}


def _model_of(folder: Path, said: dict) -> torch.nn.Module:
    """The base; in a class of the library's own, whose head undoes an invertible adapter, if so."""
    model = base_of(folder)
    if not said['model_class'].endswith('AdapterModel'):
        adapters.init(model)
        return model
    base = GOLDEN / folder.parent.name / 'base'
    flexible = getattr(adapters, said['model_class']).from_pretrained(
        base, attn_implementation='eager'
    )
    flexible.add_causal_lm_head('head', layers=1, activation_function=None)
    flexible.heads['head'][-1].weight.data = model.lm_head.weight.data
    return flexible


@torch.no_grad()
def _draw(folder: Path, said: dict) -> None:
    model, name = _model_of(folder, said), said['name']
    model.add_adapter(name, config=adapters.AdapterConfig.load(said['config']))
    own = [(n, p) for n, p in model.named_parameters() if f'.{name}.' in n or f'.{name}_' in n]
    start = {n: p.clone() for n, p in own}
    draw(folder, own)
    for n, parameter in own:
        whole = not n.endswith('parametrizations.weight.original')
        # Of an orthonormal matrix the part that its reflections are made of. The diagonal is signs,
        # which torch cuts to whole numbers: in between no small step changes them.
        signs = start[n] - 0.5 * torch.eye(*parameter.shape) if not whole else start[n]
        parameter.copy_(signs + (parameter if whole else parameter.triu(1)))
    with tempfile.TemporaryDirectory() as saved:
        # Its safetensors refuse what has two names, such as a prefix that all layers share.
        model.save_adapter(saved, name, with_head=False)
        tensors = torch.load(Path(saved, 'pytorch_adapter.bin'), weights_only=True)
    write(folder / 'adapter.safetensors', {n: each.numpy() for n, each in tensors.items()})


def folders() -> list[Path]:
    return sorted(path.parent for path in GOLDEN.glob('adapters/*/*/adapter_config.json'))


if __name__ == '__main__':
    run(make, folders())
