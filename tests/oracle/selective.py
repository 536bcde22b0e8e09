"""Trained rows of embeddings and layer norms as Hugging Face's peft writes them."""

import dataclasses
from collections.abc import Callable

import numpy as np

import peftjax
from tests.oracle.cases import Case, Converted, Tensors
from tests.oracle.lora_family import lora
from tests.oracle.names import module_of, with_saved

_ROWS = '.trainable_tokens_delta'


def _tokens(case: Case) -> Converted:
    """Rows of one embedding; the file's name for it says that they are changes, but they are new
    rows."""
    # A tied head's rows stand in the file as well, their gradient only once.
    key = next(name for name in case.gradients if name.endswith(_ROWS))
    module = key.removesuffix(_ROWS).removesuffix('.token_adapter')
    leaf = f'{module_of(case, module)}/embedding'
    config = case.config
    ids = config['token_indices'] if 'token_indices' in config else _only(config)

    def convert(tensors: Tensors) -> dict[str, np.ndarray]:
        return {leaf: tensors[key]}

    return Converted(peftjax.trainable_tokens(ids, targets=leaf), convert)


def _only(config: dict) -> list[int]:
    (ids,) = config['trainable_token_indices'].values()
    return ids


def _with_lora(case: Case) -> Converted:
    tokens = _tokens(case)
    # What is left is a plain LoRA, heads included.
    rest = dataclasses.replace(
        case,
        tensors={name: each for name, each in case.tensors.items() if not name.endswith(_ROWS)},
        gradients={name: each for name, each in case.gradients.items() if not name.endswith(_ROWS)},
    )
    inner = lora(rest)

    def convert(tensors: Tensors) -> tuple[object, object]:
        return tokens.convert(tensors), inner.convert(tensors)

    return Converted(peftjax.chain(tokens.transform, inner.transform), convert)


def _layer_norms(case: Case) -> Converted:
    leaves = {}
    for name in case.tensors:
        if '.ln_tuning_layers.' in name:
            module, kind = name.split('.ln_tuning_layers.')
            leaves[name] = f'{module_of(case, module)}/{"scale" if kind == "weight" else "bias"}'

    def convert(tensors: Tensors) -> dict[str, np.ndarray]:
        return {leaf: tensors[name] for name, leaf in leaves.items()}

    return with_saved(case, Converted(peftjax.select(tuple(leaves.values())), convert))


CONVERTERS: dict[str, Callable[[Case], Converted]] = {
    'trainable_tokens': _tokens,
    'lora_trainable_tokens': _with_lora,
    'ln_tuning': _layer_norms,
}
