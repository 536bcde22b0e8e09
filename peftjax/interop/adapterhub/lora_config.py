"""The config that AdapterHub's methods on matrices share: all that is off, which are adapted."""

from collections.abc import Iterable, Mapping
from typing import Any

from peftjax.interop.adapterhub.file import Arrays, left_out
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.peft.names import sliced

BLANK = {
    **{'architecture': 'lora', 'composition_mode': 'add', 'dropout': 0.0, 'dtype': None},
    **{'init_weights': 'lora', 'init_weights_seed': None, 'use_dora': False},
    **{'use_gating': False, 'vera_b': None, 'vera_d': None},
}
"""LoRA's fields, with whatever makes it another method off."""


def matrices_of(hub: Hub, entries: Mapping[str, Any]) -> Iterable[tuple[str, Arrays]]:
    """Modules, theirs, and the arrays of each."""
    for path, arrays in entries.items():
        slot = hub.names.slots[path]
        for index, tensor in enumerate(slot.names):
            yield (
                tensor.removesuffix('.weight'),
                {ours: sliced(slot, value, index) for ours, value in arrays.items()},
            )


def chosen(hub: Hub, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say which matrices are adapted."""
    places = hub.places
    known = {**places.attention, 'intermediate': places.intermediate, 'output': places.output}
    kinds: dict[str, set[int]] = {}
    for module, _ in matrices_of(hub, entries):
        parts = [part for part in module.split('.') if part.isdigit()]
        layer = int(parts[0]) if parts else 0
        (kind,) = [k for k, each in known.items() if each.format(layer=layer) == module] or ('',)
        if not kind:
            raise ValueError(
                f'{module} is none of the matrices that AdapterHub adapts: '
                f'{", ".join(known.values())}'
            )
        kinds.setdefault(kind, set()).add(layer)
    layers = set.union(*kinds.values())
    if any(each != layers for each in kinds.values()):
        raise ValueError(f'layers have different matrices adapted: {kinds}')
    attention = [kind for kind in places.attention if kind in kinds]
    return {
        'selfattn_lora': bool(attention),
        'attn_matrices': attention or ['q', 'v'],
        'intermediate_lora': 'intermediate' in kinds,
        'output_lora': 'output' in kinds,
        'leave_out': left_out(hub, layers),
    }
