"""Leaves that a file of peft trains whole, in and out: heads, embeddings, biases, norms."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Entry
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Arrays, Found, Part, check_shapes, literal, take_tied
from peftjax.interop.peft.names import ROOT, Names, sliced, stacked
from peftjax.interop.peft.written import Written, common
from peftjax.methods.sparse.select import select

_SECOND = re.compile(r'(.+)\.modules_to_save\.[^.]+\.([^.]+\.[^.]+)')


def read_whole(found: Found) -> list[Part]:
    """The leaves that the file holds whole: heads, embeddings, biases, norms."""
    grouped: dict[str, dict[int, Arrays]] = {}
    _drop_second_names(found)
    for name in list(found.tensors):
        if name not in found.tensors:
            continue  # The second copy of a tied table, taken with the first.
        if '.original_module.' in name:
            found.tensors.pop(name)  # The trained copy of the module replaces it.
            continue
        place = found.names.place(name.replace('.modules_to_save.', '.'))
        if place is None or (name.endswith('.weight') and 'lora' in name):
            continue
        value = found.tensors.pop(name)
        if place.slot.path == found.names.table:
            take_tied(found, name, value)
        turned = value.T if place.slot.transposed else value
        grouped.setdefault(place.slot.path, {})[place.number] = {'w': turned}
    if not grouped:
        return []
    adapter = {
        path: stacked(found.names.slots[path], layers, found.where)['w']
        for path, layers in grouped.items()
    }
    part = select(literal(adapter)), Entry('select', adapter)
    check_shapes(found.model, found.where, part)
    return [part]


def _drop_second_names(found: Found) -> None:
    """Drops second names: a file of all biases has those of a head of several layers twice.

    Raises:
        CheckpointError: the two have different values.
    """
    for name in list(found.tensors):
        second = _SECOND.fullmatch(name)
        first = second and found.tensors.get(f'{second[1]}.{second[2]}')
        if first is None:
            continue
        if not np.array_equal(first, found.tensors.pop(name)):
            raise CheckpointError(f'{found.where}: {name} has other values under its shorter name')


def read_norms(found: Found) -> Part:
    found.tensors.update(
        {
            name.replace('.ln_tuning_layers.', '.'): found.tensors.pop(name)
            for name in list(found.tensors)
            if '.ln_tuning_layers.' in name
        }
    )
    found.config.get('target_modules')
    parts = read_whole(found)
    if not parts:
        raise CheckpointError(f'{found.where} holds no layer norm')
    return parts[0]


def write_norms(names: Names, leaves: Mapping[str, Any], norms: set[str]) -> Written:
    """Layer norms without a method, and the other leaves beside them."""
    tensors = {}
    kept, modules = copies_of(names, {path: leaves[path] for path in norms})
    for name, value in kept.items():
        module, _, kind = name.rpartition('.')
        tensors[f'{ROOT}{module}.ln_tuning_layers.{kind}'] = value
    others, saved = copies_of(names, {path: leaves[path] for path in leaves if path not in norms})
    tensors |= {ROOT + name: value for name, value in others.items()}
    fields = common(names, 'LN_TUNING', modules)
    return tensors, {**fields, 'modules_to_save': modules_to_save(names, saved)}


def copies_of(names: Names, leaves: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Tensors of modules that are trained whole, and their names."""
    tensors, modules = {}, set()
    for path, value in leaves.items():
        owner = paths.parent(path)
        absent = [p for p in names.slots if paths.parent(p) == owner and p not in leaves]
        if absent:
            raise ValueError(
                f'{path!r} is trained whole but {absent} are not; peft trains whole modules: '
                'choose all leaves of this one'
            )
        if path == names.table and names.tied:
            if names.tied_head is None:
                raise ValueError(
                    f'{path!r} is trained where it is looked up and as the tied head; peft would '
                    'change only the lookup'
                )
            # peft's copies of the two modules are not tied, and hold the same values.
            modules.add(names.tied_head)
            tensors[f'{names.tied_head}.weight'] = np.asarray(value)
        slot = names.slots[path]
        for index in range(len(slot.names)):
            one = sliced(slot, value, index)
            name = names.tensor(path, index)
            modules.add(name.rpartition('.')[0])
            tensors[name] = one.T if slot.transposed else one
    for module in sorted(modules):
        lacking = [n for n in names.tensors() if n.startswith(f'{module}.') and n not in tensors]
        if lacking:
            raise ValueError(
                f'a file of peft holds {module} whole or not at all, and {lacking[:4]} are not '
                'trained: choose all of its leaves, or leave those that are chosen out'
            )
    return tensors, modules


def modules_to_save(names: Names, modules: set[str]) -> list[str] | None:
    """`modules_to_save` for these; a head of several layers is one module there."""
    head = {name for name in names.modules() if name.startswith('classifier.')}
    if head & modules and not head <= modules:
        raise ValueError(
            f'{sorted(head & modules)} are trained whole but {sorted(head - modules)} are not; '
            'peft trains a head as one module: choose all its leaves'
        )
    tied = {names.tied_head} & modules if names.tied else set()
    rest = [*names.short(modules - head - tied), *sorted(filter(None, tied))]
    return ([*rest, 'classifier'] if head & modules else rest) or None
