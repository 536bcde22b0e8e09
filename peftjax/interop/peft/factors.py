"""The two factors of LoRA and the lengths of DoRA, as the library keeps them at each kind of layer.

At a linear layer `lora_A` is [r, in] and `lora_B` [out, r]. At an embedding the two are parameters
of other names, [r, rows] and [width, r]. At a convolution they are convolutions themselves: [r, in,
*window] and [out, r, 1, ...]. Lengths are [out], at a convolution [1, out, 1, ...].
"""

from collections.abc import Collection, Mapping

import numpy as np

from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Arrays, Found
from peftjax.interop.peft.names import is_table, window
from peftjax.models.names import Slot

LINEAR = {'a': '.lora_A.weight', 'b': '.lora_B.weight'}
TABLE = {'a': '.lora_embedding_A', 'b': '.lora_embedding_B'}
BESIDE = {
    'magnitude': '.lora_magnitude_vector',
    'bias': '.lora_B.bias',
    'diag': '.lora_diag',
}
"""The tensors of DoRA, of LoRA with its own bias, and of KaSA."""


def take_factors(found: Found, beside: Collection[str]) -> dict[str, Arrays]:
    """`{module: {'a': [in, r], 'b': [r, out]}}`, and those of `BESIDE` that `beside` names.

    Raises:
        CheckpointError: a module without one of them, or one of another shape.
    """
    tables = {f'table {name}': ending for name, ending in TABLE.items()}
    more = {name: BESIDE[name] for name in beside}
    endings = {**LINEAR, **tables, 'magnitude': BESIDE['magnitude'], **more}
    modules = {}
    for module, arrays in found.take(endings, endings).items():
        slot = found.place(module).slot
        here = (TABLE if is_table(slot) else LINEAR) | more
        known = {name.removeprefix('table '): endings[name] for name in arrays}
        if absent := sorted(set(here.values()) - set(known.values())):
            lacking = ', '.join(f'{module}{ending}' for ending in absent)
            raise CheckpointError(f'{found.where} lacks {lacking}')
        if extra := sorted(set(known.values()) - set(here.values())):
            raise CheckpointError(
                f'{found.where} has {module}{extra[0]}, which its config does not ask for'
            )
        plain = {name.removeprefix('table '): value for name, value in arrays.items()}
        modules[module] = _from_file(found, module, slot, plain)
    return modules


def _from_file(found: Found, module: str, slot: Slot, arrays: Arrays) -> Arrays:
    a, b = arrays['a'], arrays['b']
    ones = (1,) * len(window(slot))
    inputs = slot.shape[1:] if ones else a.shape[1:2]
    wanted = {'a': (*a.shape[:1], *inputs), 'b': (*b.shape[:1], *a.shape[:1], *ones)}
    if ones:
        wanted['b'] = (slot.shape[0], *a.shape[:1], *ones)
        wanted['magnitude'] = (1, slot.shape[0], *ones)
    for name, value in arrays.items():
        if name in wanted and value.shape != wanted[name]:
            raise CheckpointError(
                f'{found.where}: the factor {name} of {module} is {value.shape}, and its layer of '
                f'{slot.shape} with rank {a.shape[:1]} needs {wanted[name]}'
            )
    rank = a.shape[0]
    turned = {**arrays, 'a': a.T.reshape(-1, rank), 'b': b.T.reshape(rank, -1)}
    if ones and 'magnitude' in arrays:
        turned['magnitude'] = arrays['magnitude'].reshape(-1)
    return turned


def to_file(slot: Slot, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one module by the endings of their tensors."""
    endings = {**(TABLE if is_table(slot) else LINEAR), **BESIDE, 'shift': BESIDE['bias']}
    ones, rank = (1,) * len(window(slot)), arrays['a'].shape[1]
    shapes = {
        # Reversed, as our leaf has the axes of the file's weight in reverse.
        'a': (*slot.shape[:0:-1], rank) if ones else arrays['a'].shape,
        'b': (*ones, *arrays['b'].shape),
        'magnitude': (*ones, -1, 1) if ones else (-1,),
    }
    return {
        endings[name]: arrays[name].reshape(shapes.get(name, -1)).T
        for name in endings
        if name in arrays
    }
