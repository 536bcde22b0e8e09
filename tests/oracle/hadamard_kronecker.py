"""GraLoRA and the block affine form of MiSS, from the names of Hugging Face's peft."""

from collections.abc import Callable

import numpy as np

import peftjax
from tests.oracle.cases import Case, Converted, Tensors
from tests.oracle.names import entry, kernel_of, modules_of, with_saved

Tables = dict[str, tuple[str, bool]]


def _converter(
    ending: str, table: Tables, make: Callable[..., peftjax.PeftTransform]
) -> Callable[[Case], Converted]:
    """`table`: our name -> (theirs, whether it is transposed); names a case lacks are left out."""

    def converter(case: Case) -> Converted:
        modules = {name: kernel_of(case, name) for name in modules_of(case, ending)}

        def arrays(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
            found = {
                ours: (tensors[f'{name}.{theirs}'], turned)
                for ours, (theirs, turned) in table.items()
                if f'{name}.{theirs}' in tensors
            }
            return {ours: value.T if turned else value for ours, (value, turned) in found.items()}

        def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
            return {
                leaf: entry(case, leaf, arrays(tensors, name)) for name, leaf in modules.items()
            }

        transform = make(case.config, targets=tuple(modules.values()))
        return with_saved(case, Converted(transform, convert))

    return converter


_gralora = _converter(
    '.gralora_A',
    {
        'a': ('gralora_A', False),
        'b': ('gralora_B', False),
        'hybrid_a': ('gralora_A_general.weight', True),
        'hybrid_b': ('gralora_B_general.weight', True),
    },
    lambda config, targets: peftjax.gralora(
        rank=config['r'],
        blocks=config['gralora_k'],
        hybrid_rank=config['hybrid_r'],
        alpha=config['alpha'],
        targets=targets,
    ),
)
_miss = _converter(
    '.miss_block',
    {'d': ('miss_block', False)},
    lambda config, targets: peftjax.miss(
        rank=config['r'],
        bat=True,
        targets=targets,
    ),
)
CONVERTERS = {'gralora': _gralora, 'gralora_hybrid': _gralora, 'miss_bat': _miss}
