"""Writes biases that are trained beside LoRA; `whole` reads them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.interop.peft.names import ROOT, Names, sliced


def biases_in(names: Names, leaves: Mapping[str, Any]) -> set[str]:
    """The biases among the leaves whose modules are not trained whole."""
    return {
        path
        for path in leaves
        if path.endswith('bias')
        and any(
            paths.parent(other) == paths.parent(path) and other not in leaves
            for other in names.slots
        )
    }


def which_biases(names: Names, biases: set[str], adapted: set[str], leaves: set[str]) -> str:
    """What the library calls this choice of biases: 'all', or those of adapted modules."""
    modules = {name.removeprefix(ROOT) for name in adapted}
    of_adapted = {
        path
        for path, slot in names.slots.items()
        if path.endswith('bias')
        and any(
            names.module(path, i).removesuffix('.bias') in modules for i in range(len(slot.names))
        )
    }
    if biases == of_adapted:
        return 'lora_only'
    every = {path for path in names.slots if path.endswith('bias')}
    if every <= leaves:
        return 'all'
    raise ValueError(
        f'peft trains all biases, or those of adapted modules, not {sorted(biases)[:6]}; '
        "choose r'.*bias'"
    )


def bias_tensors(
    names: Names, leaves: Mapping[str, Any], adapted: set[str]
) -> dict[str, np.ndarray]:
    """The tensors of biases; those of adapted modules are inside a wrapper."""
    tensors = {}
    for path, value in leaves.items():
        slot = names.slots[path]
        for index in range(len(slot.names)):
            module = ROOT + names.tensor(path, index).removesuffix('.bias')
            inside = '.base_layer' if module in adapted else ''
            tensors[f'{module}{inside}.bias'] = sliced(slot, value, index)
    return tensors
