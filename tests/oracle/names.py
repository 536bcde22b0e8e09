"""The other library's module names as ours, and the trained heads that ride along."""

import dataclasses
import re

import numpy as np

import peftjax
from tests.oracle.cases import Case, Converted, Tensors

_MODULES = {
    'bert': {
        r'embeddings\.word_embeddings': 'embeddings/word_embeddings',
        r'embeddings\.LayerNorm': 'embeddings/layer_norm',
        r'encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)': r'layers_\1/attention/\2',
        r'encoder\.layer\.(\d+)\.attention\.output\.dense': r'layers_\1/attention/output',
        r'encoder\.layer\.(\d+)\.attention\.output\.LayerNorm': r'layers_\1/attention/layer_norm',
        r'encoder\.layer\.(\d+)\.intermediate\.dense': r'layers_\1/ffn/intermediate',
        r'encoder\.layer\.(\d+)\.output\.dense': r'layers_\1/ffn/output',
        r'encoder\.layer\.(\d+)\.output\.LayerNorm': r'layers_\1/ffn/layer_norm',
        r'pooler\.dense': 'pooler',
        r'classifier': 'classifier',
    },
    'llama': {
        r'embed_tokens': 'embed_tokens',
        r'layers\.(\d+)\.(self_attn|mlp)\.(\w+_proj)': r'layers_\1/\2/\3',
        r'layers\.(\d+)\.(input_layernorm|post_attention_layernorm)': r'layers_\1/\2',
        r'norm': 'norm',
        r'lm_head': 'lm_head',
    },
    'gpt2': {
        r'wte': 'wte',
        r'h\.(\d+)\.(attn|mlp)\.(c_\w+)': r'layers_\1/\2/\3',
        r'h\.(\d+)\.(ln_1|ln_2)': r'layers_\1/\2',
        r'ln_f': 'ln_f',
        r'lm_head': 'wte',
    },
}


def modules_of(case: Case, ending: str) -> list[str]:
    """Module names, in the file's own words, of the tensors whose names end with `ending`."""
    return sorted(name.removesuffix(ending) for name in case.tensors if name.endswith(ending))


def module_of(case: Case, name: str) -> str:
    """Our path of the module that the file calls `name`.

    Raises:
        KeyError: the table has no such module.
    """
    architecture = case.base_architecture
    short = re.sub(r'^(base_model\.)?(model\.)*(bert\.|transformer\.)?', '', name)
    for pattern, path in _MODULES[architecture].items():
        if match := re.fullmatch(pattern, short):
            return match.expand(path)
    raise KeyError(f'{name} is not in the table of {architecture}')


def kernel_of(case: Case, name: str) -> str:
    """Our path of the matrix of that module: `kernel`, or `embedding`."""
    module = module_of(case, name)
    candidates = (f'{module}/kernel', f'{module}/embedding')
    return next(path for path in candidates if path in case.model.sites.weights)


def entry(case: Case, leaf: str, arrays: dict[str, np.ndarray]) -> peftjax.WeightAdapter:
    """What a weight method keeps for `leaf`."""
    layout = case.model.sites.weights[leaf].layout
    assert layout is not None, f'{leaf} cannot be adapted'
    return peftjax.WeightAdapter(layout, arrays)


def with_saved(case: Case, ours: Converted) -> Converted:
    """`ours`, chained behind the head that BERT's cases train whole."""
    pattern = re.compile(r'(.*\.)?classifier\.(weight|bias)')
    names = [name for name in case.tensors if pattern.fullmatch(name)]
    if not names:
        return ours

    def convert(tensors: Tensors) -> tuple[dict[str, np.ndarray], object]:
        head = {}
        for name in names:
            # Gradients are named after the copy that trains.
            there = name.replace('classifier.', 'classifier.modules_to_save.')
            value = tensors[name] if name in tensors else tensors[there]
            weight = name.endswith('weight')
            head[f'classifier/{"kernel" if weight else "bias"}'] = value.T if weight else value
        return head, ours.convert(tensors)

    transform = peftjax.chain(peftjax.select(r'classifier/.*'), ours.transform)
    return dataclasses.replace(ours, transform=transform, convert=convert)
