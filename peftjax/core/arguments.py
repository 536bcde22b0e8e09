"""Arguments of methods by the names that other libraries give them."""

import inspect
from collections.abc import Mapping
from typing import Any

# What other libraries call an argument: the names here, of which a method has one at most, or else
# what to write in its place.
_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    'r': ('rank', 'init_rank', 'block_size'),
    'lora_alpha': ('alpha',),
    'lora_dropout': ('dropout',),
    'target_modules': ('targets',),
    'use_rslora': ('rslora',),
    'init_lora_weights': ('init',),
}
_IN_PLACE_OF: Mapping[str, str] = {
    'modules_to_save': 'peftjax.chain({name}(...), peftjax.select(...)) with the leaves to train',
    'exclude_modules': 'targets=peftjax.targets(..., exclude=...)',
    'use_dora': 'peftjax.dora(...)',
}


def check_names(name: str, signature: inspect.Signature, given: Mapping[str, Any]) -> None:
    """Raises `TypeError` for an argument that goes by another name here, naming ours."""
    told = []
    for theirs in given:
        if theirs in signature.parameters:
            continue
        ours = [each for each in _ELSEWHERE.get(theirs, ()) if each in signature.parameters]
        if ours:
            told.append(f'{ours[0]}=... in place of {theirs}=...')
        elif theirs in _IN_PLACE_OF:
            told.append(f'{_IN_PLACE_OF[theirs].format(name=name)} in place of {theirs}=...')
        elif theirs in _ELSEWHERE:
            told.append(f'arguments among {list(signature.parameters)}, and no {theirs}=...')
    if told:
        raise TypeError(f'{name}: write ' + '; '.join(told))
