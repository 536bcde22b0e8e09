"""Arguments of methods: the names that other libraries give them, and numbers out of range."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from peftjax.core.numbers import HELD, is_held, is_plain, shown

# Names of arguments in other libraries, with their names here. A method has at most one of these.
# Where there is no such argument, `_IN_PLACE_OF` says what to write instead.
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


def check_names(
    name: str, signature: inspect.Signature, args: Sequence[Any], given: Mapping[str, Any]
) -> None:
    """Raises `TypeError` for arguments that lack their name, and for names of other libraries."""
    _check_positions(name, signature, args)
    told = []
    unknown = [theirs for theirs in given if theirs not in signature.parameters]
    for theirs in unknown:
        ours = [each for each in _ELSEWHERE.get(theirs, ()) if each in signature.parameters]
        if ours:
            told.append(f'{ours[0]}=... in place of {theirs}=...')
        elif theirs in _IN_PLACE_OF:
            told.append(f'{_IN_PLACE_OF[theirs].format(name=name)} in place of {theirs}=...')
        elif theirs in _ELSEWHERE:
            told.append(f'arguments among {list(signature.parameters)}, and no {theirs}=...')
    if told:
        raise TypeError(f'{name}: write ' + '; '.join(told))
    if unknown:
        raise TypeError(
            f'{name}() got an unexpected keyword argument {unknown[0]!r}; {name} takes '
            f'{", ".join(signature.parameters)}'
        )


def check_numbers(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a number that float32 does not hold."""
    for argument, value in arguments.items():
        for number in value.values() if isinstance(value, Mapping) else (value,):
            if is_plain(number) and not is_held(number):
                raise ValueError(f'{name}: {argument} is {shown(number)}; write {HELD}')


def _check_positions(name: str, signature: inspect.Signature, args: Sequence[Any]) -> None:
    parameters = signature.parameters.values()
    by_name = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return
    if len(args) > (most := len(parameters) - len(by_name)) and by_name:
        needed = [each for each in by_name if each.default is each.empty] or by_name[:2]
        written = ['...'] * most + [f'{each.name}=...' for each in needed]
        raise TypeError(
            f'{name}() takes {most} positional arguments, found {len(args)}; write '
            f'{name}({", ".join(written)})'
        )
