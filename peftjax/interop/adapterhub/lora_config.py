"""The config that AdapterHub's methods on matrices share, and which matrices it adapts."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from peftjax.interop.adapterhub.file import Arrays, left_out
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.peft.names import sliced

_NUMBER = re.compile(r'\.\d+(?=\.|$)')

BLANK = {
    **{'architecture': 'lora', 'composition_mode': 'add', 'dropout': 0.0, 'dtype': None},
    **{'init_weights': 'lora', 'init_weights_seed': None, 'use_dora': False},
    **{'use_gating': False, 'vera_b': None, 'vera_d': None},
}
"""LoRA's fields, with every switch to another method off."""


def matrices_of(hub: Hub, entries: Mapping[str, Any]) -> Iterable[tuple[str, Arrays]]:
    """Their modules, and our arrays of each."""
    for path, arrays in entries.items():
        slot = hub.names.slots[path]
        for index, tensor in enumerate(slot.names):
            yield (
                tensor.removesuffix('.weight'),
                {ours: sliced(slot, value, index) for ours, value in arrays.items()},
            )


def _meant(
    hub: Hub, kinds: set[str], layers: set[int], kind_of: Mapping[str, str]
) -> set[tuple[str, int]]:
    """The matrices of these kinds in these layers, by pattern and layer."""
    found = set()
    for slot in hub.names.slots.values():
        for tensor in slot.names:
            module = tensor.removesuffix('.weight')
            plain = _NUMBER.sub('.{layer}', module, count=1)
            if kind_of.get(plain) in kinds and hub.layer_of(module) in layers:
                found.add((plain, hub.layer_of(module)))
    return found


def chosen(hub: Hub, entries: Mapping[str, Any], letters: str = '') -> dict[str, Any]:
    """The fields that say which matrices are adapted; `letters` for one matrix of q, k and v."""
    places = hub.places
    known = {**places.attention, 'intermediate': places.intermediate, 'output': places.output}
    if places.merged is not None:
        known['merged'] = (places.merged,)
    kind_of = {pattern: kind for kind, patterns in known.items() for pattern in patterns}
    here: set[tuple[str, int]] = set()
    for module, _ in matrices_of(hub, entries):
        plain = _NUMBER.sub('.{layer}', module, count=1)
        if plain not in kind_of:
            raise ValueError(
                f'{module} is none of the matrices that AdapterHub adapts: {", ".join(kind_of)}'
            )
        here.add((plain, hub.layer_of(module)))
    kinds = {kind_of[plain] for plain, _ in here}
    layers = {layer for _, layer in here}
    if strange := _meant(hub, kinds, layers, kind_of) ^ here:
        raise ValueError(f'layers have different matrices adapted: {sorted(strange)[:4]}')
    attention = [*letters, *(kind for kind in places.attention if kind in kinds)]
    return {
        'selfattn_lora': bool(attention),
        'attn_matrices': attention or ['q', 'v'],
        'intermediate_lora': 'intermediate' in kinds,
        'output_lora': 'output' in kinds,
        'leave_out': left_out(hub, layers),
    }
