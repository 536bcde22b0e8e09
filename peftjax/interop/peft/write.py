"""Writes our methods as those of Hugging Face's peft, where it has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.model import Model
from peftjax.core.transform import PeftTransform
from peftjax.interop.peft.biases import bias_tensors, biases_in, which_biases
from peftjax.interop.peft.found import Part
from peftjax.interop.peft.heads import frozen_head, task_of
from peftjax.interop.peft.kinds import UNWRITABLE, WRITERS, Writer
from peftjax.interop.peft.names import ROOT, Names
from peftjax.interop.peft.tokens import Rows, write_tokens, write_tokens_beside
from peftjax.interop.peft.whole import copies_of, modules_to_save, write_norms
from peftjax.interop.peft.written import Written


def write(
    model: Model,
    names: Names,
    transform: PeftTransform,
    adapter: Adapter,
    task_type: str | None = None,
) -> Written:
    """Tensors and config of a method, alone or in a chain with leaves and tokens trained whole.

    task_type: as the caller asks for it; by default that of the model.

    Raises:
        ValueError: a method or a setting that the library does not have.
    """
    methods, copies = [], {}
    rows: list[Rows] = []
    for part, entry in _flat(transform, adapter):
        about = part.about
        if about is None:
            raise ValueError('a method of your own has no form in the files of peft')
        if about.name in ('select', 'full'):
            copies |= entry
        elif about.name == 'trainable_tokens':
            ids = tuple(about.arguments['ids'])
            rows += [Rows(ids, path, values) for path, values in entry.items()]
        else:
            methods.append((part, about, entry))
    if len(methods) > 1:
        found = [about.name for _, about, _ in methods]
        raise ValueError(f'one file of peft holds one method, here are {found}; save each alone')
    if methods:
        part, about, entry = methods[0]
        tensors, fields = _writer(about.name)(model, names, about.arguments, entry, part)
        if 'num_virtual_tokens' in fields and 'pixel_values' in model.takes:
            raise ValueError(
                f'peft has no {about.name} for models of images; save it by peftjax.save'
            )
        copies |= frozen_head(model, names, copies, (tensors, fields), task_type)
        if copies:
            _add_copies(names, copies, tensors, fields)
        more, named = write_tokens_beside(names, rows)
        tensors, fields = tensors | more, fields | named
    else:
        copies |= frozen_head(model, names, copies, ({}, {}), task_type)
        tensors, fields = _without_method(names, copies, rows)
    return tensors, {'task_type': task_of(names, fields, task_type), **fields}


def _flat(transform: PeftTransform, adapter: Adapter) -> list[Part]:
    if transform.about is None or transform.about.name not in ('chain', 'named_chain'):
        return [(transform, adapter)]
    members = transform.about.arguments['transforms']
    named = isinstance(members, Mapping)
    pairs = (
        [(members[n], adapter[n]) for n in members] if named else zip(members, adapter, strict=True)
    )
    return [part for member, entry in pairs for part in _flat(member, entry)]


def _writer(method: str) -> Writer:
    if method not in WRITERS:
        because = UNWRITABLE.get(
            method,
            f'{method} has no form in the files of peft; there are {", ".join(sorted(WRITERS))}',
        )
        raise ValueError(because)
    return WRITERS[method]


def _without_method(names: Names, copies: Mapping[str, Any], rows: Sequence[Rows]) -> Written:
    """A file of tokens alone, or of layer norms."""
    if rows and not copies:
        return write_tokens(names, rows)
    norms = {path for path in copies if f'{paths.parent(path)}/scale' in names.slots}
    if rows or not norms:
        raise ValueError(
            f'peft has a file for layer norms or for tokens alone, not for {sorted(copies)[:6]}; '
            'chain them with a method, or save parameters instead'
        )
    return write_norms(names, copies, norms)


def _add_copies(
    names: Names, copies: Mapping[str, Any], tensors: dict[str, np.ndarray], fields: dict[str, Any]
) -> None:
    """Puts leaves that are trained whole beside a method into its tensors and fields."""
    biases = biases_in(names, copies)
    adapted = {name.rpartition('.lora_')[0] for name in tensors if '.lora_' in name}
    if biases and fields['peft_type'] != 'LORA':
        raise ValueError('peft trains biases beside LoRA alone; leave them out')
    kept, modules = copies_of(names, {p: copies[p] for p in copies if p not in biases})
    both = [m for m in sorted(modules) if any(name.startswith(f'{ROOT}{m}.') for name in tensors)]
    if both:
        raise ValueError(
            f'{both} are trained whole and adapted too; peft loads the whole copies and drops the '
            'adapter there: leave one of the two out'
        )
    # Models with prompts hold the base itself, without a wrapper around its modules.
    root = 'base_model.' if 'num_virtual_tokens' in fields else ROOT
    tensors |= {f'{root}{name}': value for name, value in kept.items()}
    fields['modules_to_save'] = modules_to_save(names, modules)
    if biases:
        fields['bias'] = which_biases(names, biases, adapted, set(copies))
        tensors |= bias_tensors(names, {p: copies[p] for p in biases}, adapted)
