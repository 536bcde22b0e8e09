"""Methods of products and blocks, from the names that Hugging Face's peft gives their tensors.

Its matrices are [out, in]: the factors of a product change places as well as their sides.
"""

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


_loha = _converter(
    '.hada_w1_a',
    {
        'a1': ('hada_w1_b', True),
        'b1': ('hada_w1_a', True),
        'a2': ('hada_w2_b', True),
        'b2': ('hada_w2_a', True),
    },
    lambda config, targets: peftjax.loha(rank=config['r'], alpha=config['alpha'], targets=targets),
)
_lokr = _converter(
    '.lokr_w2_a',
    {
        'c': ('lokr_w1', True),
        'c_a': ('lokr_w1_b', True),
        'c_b': ('lokr_w1_a', True),
        'd_a': ('lokr_w2_b', True),
        'd_b': ('lokr_w2_a', True),
    },
    lambda config, targets: peftjax.lokr(
        rank=config['r'],
        alpha=config['alpha'],
        factor=config['decompose_factor'],
        decompose_both=config['decompose_both'],
        targets=targets,
    ),
)
_hira = _converter(
    '.hira_A',
    {'a': ('hira_A', True), 'b': ('hira_B', True)},
    lambda config, targets: peftjax.hira(rank=config['r'], targets=targets),
)
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
        mini_rank=config['mini_r'] if config['init_weights'] == 'mini' else None,
        bat=config['init_weights'] == 'bat',
        targets=targets,
    ),
)
# The library's backward pass of C3A hands a wrong gradient to the layers below: only those of the
# last layer, logits and loss compare.
_c3a = _converter(
    '.c3a_kernel',
    {'kernel': ('c3a_kernel', False)},
    lambda config, targets: peftjax.c3a(block_size=config['block_size'], targets=targets),
)

CONVERTERS = {
    'loha': _loha,
    'lokr': _lokr,
    'lokr_decompose_both': _lokr,
    'hira': _hira,
    'gralora': _gralora,
    'gralora_hybrid': _gralora,
    'miss': _miss,
    'miss_bat': _miss,
    'miss_mini': _miss,
    'c3a': _c3a,
}
