"""AdapterHub's (IA)³, in and out."""

from typing import Any

import numpy as np

from peftjax.core.transform import About
from peftjax.interop.adapterhub.file import File, Part, Written
from peftjax.interop.adapterhub.lora_config import BLANK, chosen, matrices_of
from peftjax.interop.adapterhub.merged import is_merged, narrowed, scaled_letters, widened
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, bias_named, literal
from peftjax.methods.structured.ia3 import ia3


def read_ia3(file: File, found: Found, gates: bool) -> Part:
    rank, alpha = file.config.whole('r'), file.config.number('alpha')
    if (rank, alpha, gates) != (1, 1, False):
        raise CheckpointError(
            f'{file.where}: (IA)³ has r and alpha 1 and no gates, not {rank}, {alpha}, {gates}'
        )
    modules = found.take({'l': f'.loras.{file.name}.lora_B'})
    entries = found.entries(
        'ia3',
        {
            module: bias_named(
                found, module, {'output': _scale(file, found, module, arrays['l'])}, 'output'
            )
            for module, arrays in modules.items()
        },
    )
    return ia3(targets=literal(entries)), entries


def _scale(file: File, found: Found, module: str, value: np.ndarray) -> np.ndarray:
    scale = value.reshape(-1)
    if not is_merged(file.hub, module):
        return scale
    return widened(file, module, scale, found.layout(found.place(module).slot.path).outputs)


def write_ia3(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    del about
    tensors, scales = {}, {}
    for module, arrays in matrices_of(hub, adapter):
        if 'input' in arrays:
            raise ValueError(f'{module}: AdapterHub multiplies what leaves a matrix, not its input')
        (scales[module],) = arrays.values()
    merged = [scale for module, scale in scales.items() if is_merged(hub, module)]
    letters = scaled_letters(merged) if merged else ''
    for module, scale in scales.items():
        stored = narrowed(scale, letters) if is_merged(hub, module) else scale
        tensors[f'{module}.loras.{name}.lora_B'] = stored[:, None]
    inner = BLANK | {'composition_mode': 'scale', 'init_weights': 'ia3', 'r': 1, 'alpha': 1}
    return tensors, inner | chosen(hub, adapter, letters)
