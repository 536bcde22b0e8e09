"""AdapterHub's files (the `adapters` library) as methods of ours, and the other way round.

A file holds one adapter and its name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from peftjax.core.entries import Adapter
from peftjax.core.model import Model
from peftjax.core.transform import About, PeftTransform
from peftjax.interop.adapterhub import bottlenecks, matrices, prefixes, reft
from peftjax.interop.adapterhub.file import File, Part, Written
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.config import PeftConfig

# The end of the names of the library's own classes, whose heads undo an invertible adapter.
_FLEXIBLE = 'AdapterModel'
_CLASSES = {
    **{'SEQ_CLS': 'ForSequenceClassification', 'CAUSAL_LM': 'ForCausalLM'},
    'FEATURE_EXTRACTION': 'Model',
}
_OWN_HEADS = ('CAUSAL_LM', 'SEQ_2_SEQ_LM')
# Fields about training, or that the tensors show too.
_SAID_ELSEWHERE = (
    *('dropout', 'init_weights', 'init_weights_seed', 'stochastic_depth', 'leave_out'),
    *('mh_adapter', 'output_adapter', 'reduction_factor', 'hypercomplex_nonlinearity'),
    *('inv_adapter_reduction_factor', 'phm_dim', 'phm_rank', 'phm_c_init', 'phm_init_range'),
    *('learn_phm', 'attn_matrices', 'selfattn_lora', 'intermediate_lora', 'output_lora', 'dtype'),
    *('vera_b', 'vera_d'),
)
READERS: dict[str | None, Callable[[File], list[Part]]] = {
    **dict.fromkeys((None, 'bottleneck'), bottlenecks.read),
    'lora': lambda file: [matrices.read(file)],
    'prefix_tuning': lambda file: [prefixes.read(file)],
    'prompt_tuning': lambda file: [prefixes.read_prompt(file)],
    'reft': lambda file: [reft.read(file)],
}
WRITERS: dict[str, Callable[[Hub, About, Any, str], Written]] = {
    **bottlenecks.WRITERS,
    **matrices.WRITERS,
    **prefixes.WRITERS,
    **reft.WRITERS,
}


def read(
    model: Model,
    raw: Mapping[str, Any],
    tensors: dict[str, np.ndarray],
    where: str,
    told: dict[str, Any],
) -> list[Part]:
    """The methods and adapters of a file; what is read is taken out of `tensors` and `told`.

    Raises:
        CheckpointError: a method, or a setting of it, that is not built here; tensors that are
            missing, misshapen or for another model.
    """
    hub, inner, name = Hub(model), raw.get('config'), raw.get('name')
    if not isinstance(inner, Mapping) or not isinstance(name, str):
        raise CheckpointError(f'{where}: adapter_config.json names no adapter, or has no config')
    for full in list(tensors):
        tensors[full.removeprefix(hub.prefix)] = tensors.pop(full)
    flexible = str(raw.get('model_class')).endswith(_FLEXIBLE)

    def file_of(each: Mapping[str, Any]) -> File:
        return File(hub, PeftConfig(each, where), tensors, name, flexible, told)

    if inner.get('architecture') != 'union':
        return _read_one(file_of(inner))
    members = inner.get('configs')
    if not isinstance(members, list) or not all(isinstance(each, Mapping) for each in members):
        raise CheckpointError(f'{where}: a union has a list of configs, not {str(members)[:60]}')
    if strange := sorted(set(inner) - {'architecture', 'configs'}):
        raise CheckpointError(f'{where}: {strange} of a union are unknown')
    # Weights first: adapters after a sublayer see what the weights make.
    order = sorted(members, key=lambda each: each.get('architecture') != 'lora')
    parts = [part for each in order for part in _read_one(file_of(each))]
    if not parts:
        raise CheckpointError(f'{where}: a union of nothing')
    return parts


def _read_one(file: File) -> list[Part]:
    kind = file.config.get('architecture')
    if not isinstance(kind, str | None) or kind not in READERS:
        raise CheckpointError(
            f'{file.where}: architecture {str(kind)[:40]!r} of AdapterHub is not read; '
            'bottlenecks, Compacter, invertible adapters, LoRA, DoRA, VeRA, (IA)³, ReFT, prefixes, '
            'prompts and unions of them are'
        )
    parts = READERS[kind](file)
    for field in _SAID_ELSEWHERE:
        file.config.get(field)
    file.config.check_all_read()
    return parts


def write(model: Model, transform: PeftTransform, adapter: Adapter, name: str) -> Written:
    """Tensors and adapter_config.json of a method, or of a chain of them (a union there).

    Raises:
        ValueError: a method, or a setting of it, that a file of AdapterHub cannot hold.
    """
    hub, members = Hub(model), _members(transform, adapter)
    tensors, inner = _write_members(hub, members, name)
    config = {
        'config': inner,
        'hidden_size': getattr(model.config, hub.places.width),
        'model_class': _class_of(hub, any(about.arguments.get('inverse') for about, _ in members)),
        'model_name': '',
        'model_type': hub.family,
        'name': name,
        'version': 'adapters.1.3.0',
    }
    return {f'{hub.prefix}{n}': np.ascontiguousarray(v) for n, v in tensors.items()}, config


def _class_of(hub: Hub, inverts: bool) -> str:
    """The class of a model; one of the library's own where a head undoes an invertible adapter."""
    if inverts:
        return f'{hub.places.name}{_FLEXIBLE}'
    task = hub.names.task or 'FEATURE_EXTRACTION'
    own = hub.places.kind if task in _OWN_HEADS else None
    return own or f'{hub.places.name}{_CLASSES[task]}'


def _write_members(hub: Hub, members: list[tuple[About, Any]], name: str) -> Written:
    invertible = [each for each in members if each[0].name == 'invertible_adapter']
    parts = [_write_one(hub, *each, name) for each in members if each not in invertible]
    for about, leaves in invertible:
        bottleneck = next((i for i, part in enumerate(parts) if 'inv_adapter' in part[1]), None)
        if bottleneck is None:
            raise ValueError('AdapterHub has an invertible adapter beside a bottleneck alone')
        part = bottlenecks.add_invertible(hub, about, leaves, name, parts[bottleneck])
        parts[bottleneck] = part
    # The order of the library's own unions, which adds what LoRA makes where it stands.
    parts.sort(key=lambda part: part[1].get('architecture') == 'lora')
    tensors = {n: value for part, _ in parts for n, value in part.items()}
    if len(tensors) != sum(len(part) for part, _ in parts):
        raise ValueError('two members of the chain are at one place; AdapterHub holds one')
    if len(parts) == 1:
        return tensors, parts[0][1]
    return tensors, {'architecture': 'union', 'configs': [inner for _, inner in parts]}


def _members(transform: PeftTransform, adapter: Any) -> list[tuple[About, Any]]:
    about = transform.about
    if about is None:
        raise ValueError(f'a method of your own has no file of AdapterHub here; {_HAVE}')
    if about.name != 'chain':
        return [(about, adapter)]
    pairs = zip(about.arguments['transforms'], adapter, strict=True)
    return [member for each in pairs for member in _members(*each)]


def _write_one(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    if about.name not in WRITERS:
        because = reft.UNWRITTEN.get(about.name, '')
        raise ValueError(f'{about.name} has no file of AdapterHub here{because}; {_HAVE}')
    return WRITERS[about.name](hub, about, adapter, name)


_HAVE = f'{", ".join(WRITERS)}, invertible_adapter and chains of them have'
