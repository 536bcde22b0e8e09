"""A method of ours as AdapterHub (the `adapters` library) writes it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from peftjax.core.base import About, Adapter, Model, PeftTransform
from peftjax.interop.adapterhub_names import COMPACTER_TABLE, Hub, Table, bottleneck_table
from peftjax.interop.peft_names import sliced
from peftjax.interop.peft_prompts import cores

Written = tuple[dict[str, np.ndarray], dict[str, Any]]

# What a bottleneck's config says when nothing else is set; the rest is by the adapter.
_BOTTLENECK = {
    **{'adapter_residual_before_ln': False, 'cross_adapter': False, 'dropout': 0.0},
    **{'factorized_phm_W': True, 'factorized_phm_rule': False, 'init_weights': 'bert'},
    **{'hypercomplex_nonlinearity': 'glorot-uniform', 'init_weights_seed': None},
    **{'inv_adapter': None, 'inv_adapter_reduction_factor': None, 'learn_phm': True},
    **{'original_ln_after': True, 'phm_bias': True, 'phm_c_init': 'normal', 'phm_dim': 4},
    **{'phm_init_range': 1e-4, 'phm_layer': False, 'phm_rank': 1, 'residual_before_ln': True},
    **{'shared_W_phm': False, 'shared_phm_rule': True, 'stochastic_depth': 0.0},
    **{'ln_after': False, 'ln_before': False, 'use_gating': False, 'scaling': 1.0},
}
_LORA = {
    **{'architecture': 'lora', 'composition_mode': 'add', 'dropout': 0.0, 'dtype': None},
    **{'init_weights': 'lora', 'init_weights_seed': None, 'use_dora': False},
    **{'use_gating': False, 'vera_b': None, 'vera_d': None},
}
# Ours and theirs, where they differ.
_ACTIVATIONS = {'gelu_tanh': 'gelu_new'}


def write(model: Model, transform: PeftTransform, adapter: Adapter, name: str) -> Written:
    """Tensors and adapter_config.json of a method, or of a chain of them (a union there).

    Raises:
        ValueError: a method, or a setting of it, that a file of AdapterHub cannot hold.
    """
    hub = Hub(model)
    tensors, inner = _write_any(hub, transform, adapter, name)
    config = {
        'config': inner,
        'hidden_size': model.config.hidden_size,  # pyright: ignore[reportOptionalMemberAccess]
        'model_class': hub.classes[hub.names.task == 'FEATURE_EXTRACTION'],
        'model_name': '',
        'model_type': hub.family,
        'name': name,
        'version': 'adapters.1.3.0',
    }
    return {f'{hub.prefix}{n}': np.ascontiguousarray(v) for n, v in tensors.items()}, config


def _write_any(hub: Hub, transform: PeftTransform, adapter: Any, name: str) -> Written:
    about = transform.about
    if about is not None and about.name == 'chain':
        members = about.arguments['transforms']
        parts = [_write_any(hub, *each, name) for each in zip(members, adapter, strict=True)]
        # The order of the library's own unions, which adds what LoRA makes where it stands.
        parts.sort(key=lambda part: part[1].get('architecture') == 'lora')
        tensors = {n: value for part, _ in parts for n, value in part.items()}
        if len(tensors) != sum(len(part) for part, _ in parts):
            raise ValueError('two members of the chain are at one place; AdapterHub holds one')
        return tensors, {'architecture': 'union', 'configs': [inner for _, inner in parts]}
    if about is None or about.name not in _WRITERS:
        raise ValueError(
            f'{about.name if about else "a method of your own"} has no file of AdapterHub here; '
            f'{", ".join(_WRITERS)}, and chains of them have'
        )
    return _WRITERS[about.name](hub, about, adapter, name)


_FIXED = {
    'houlsby': {'scale': 1.0, 'reads': 'output'},
    'pfeiffer': {'scale': 1.0, 'reads': 'after'},
    'parallel_adapter': {'reads': 'input'},
    'compacter': {'scale': 1.0},
}


def _write_bottleneck(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    plain = {'norm_before': False, 'norm_after': False, 'gate': False}
    arguments = plain | dict(about.arguments) | _FIXED.get(about.name, {})
    tensors = _give(hub, adapter, name, bottleneck_table(arguments))
    if arguments['norm_before']:
        for theirs in [n for n in tensors if '.adapter_norm_before.' in n]:
            tensors[theirs.replace('adapter_norm_before', 'adapter_down.0')] = tensors[theirs]
    inner = _inner(hub, arguments, adapter)
    inner |= {'ln_before': arguments['norm_before'], 'ln_after': arguments['norm_after']}
    return tensors, inner | {'use_gating': arguments['gate'], 'scaling': arguments['scale']}


def _write_compacter(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    arguments = {**about.arguments, **_FIXED['compacter']}
    if arguments['rank'] is None or not arguments['shared_rule']:
        raise ValueError('a PHM adapter is not written: give compacter a rank and a shared rule')
    tensors = _give(hub, adapter['sites'], name, COMPACTER_TABLE)
    tensors[f'shared_parameters.{name}.phm_rule'] = np.asarray(adapter['shared']['rule'])
    inner = _inner(hub, arguments, adapter['sites'])
    fields = {'phm_layer': True, 'phm_dim': arguments['terms'], 'phm_rank': arguments['rank']}
    return tensors, inner | fields


def _inner(hub: Hub, arguments: Mapping[str, Any], sites: Mapping[str, Any]) -> dict[str, Any]:
    """What the config of every bottleneck says."""
    activation, reads = arguments['activation'], arguments['reads']
    if not isinstance(activation, str):
        raise ValueError(f'{activation} has no name that a file could hold; give the word')
    slots = [slot for slot in hub.slots() if slot.path in sites]
    here = {name for slot in slots for name in slot.names}
    places = list(hub.places.branches)
    kinds = [[each for each in places if each.format(layer=_layer(n)) == n][0] for n in here]
    layers = {_layer(n) for n in here}
    if len(here) != len(set(kinds)) * len(layers):
        raise ValueError(f'{sorted(sites)} are not the same places in each layer that has any')
    everything = range(hub.model.config.num_hidden_layers)  # pyright: ignore[reportOptionalMemberAccess]
    sizes = {np.shape(leaves['down_bias'])[-1] for leaves in sites.values()}
    width = hub.model.config.hidden_size  # pyright: ignore[reportOptionalMemberAccess]
    return _BOTTLENECK | {
        'non_linearity': _ACTIVATIONS.get(activation, activation),
        'is_parallel': reads == 'input',
        'original_ln_before': reads == 'after',
        'mh_adapter': places[0] in kinds,
        'output_adapter': places[1] in kinds,
        'leave_out': [layer for layer in everything if layer not in layers],
        'reduction_factor': width / sizes.pop(),
    }


def _layer(location: str) -> int:
    (number,) = [part for part in location.split('.') if part.isdigit()]
    return int(number)


def _give(hub: Hub, sites: Mapping[str, Any], name: str, table: Table) -> dict[str, np.ndarray]:
    slots = {slot.path: slot for slot in hub.slots()}
    if strange := sorted(set(sites) - set(slots)):
        raise ValueError(
            f'{strange} are no places of an adapter in AdapterHub; those of this model are '
            f'{sorted(slots)}'
        )
    tensors = {}
    for path, leaves in sites.items():
        for ours, theirs, how in table:
            for index, location in enumerate(slots[path].names):
                value = sliced(slots[path], leaves[ours], index)
                value = {'transposed': value.T, 'first': value[None], 'same': value}[how]
                tensors[f'{location}.adapters.{name}.{theirs}'] = value
    return tensors


def _write_lora(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    arguments = about.arguments
    for field in ('rslora', 'rank_pattern', 'alpha_pattern'):
        if arguments[field]:
            raise ValueError(f'AdapterHub has one rank and alpha / rank for all: no {field}')
    rank = arguments['rank']
    alpha = rank if arguments['alpha'] is None else arguments['alpha']
    tensors = {}
    for module, arrays in _matrices(hub, adapter):
        tensors[f'{module}.loras.{name}.lora_A'] = arrays['a'].T
        tensors[f'{module}.loras.{name}.lora_B'] = arrays['b'].T
    return tensors, _LORA | _chosen(hub, adapter) | {'r': rank, 'alpha': alpha}


def _write_ia3(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    del about
    tensors = {}
    for module, arrays in _matrices(hub, adapter):
        if 'input' in arrays:
            raise ValueError(f'{module}: AdapterHub multiplies what leaves a matrix, not its input')
        (scale,) = arrays.values()
        tensors[f'{module}.loras.{name}.lora_B'] = scale[:, None]
    inner = _LORA | {'composition_mode': 'scale', 'init_weights': 'ia3', 'r': 1, 'alpha': 1}
    return tensors, inner | _chosen(hub, adapter)


def _write_gated(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    inner = about.arguments['transform'].about
    if (
        inner is None
        or inner.name != 'lora'
        or inner.arguments['alpha']
        not in (
            None,
            inner.arguments['rank'],
        )
    ):
        raise ValueError(
            'AdapterHub gates LoRA alone, and in place of alpha / rank; leave alpha out'
        )
    tensors, config = _write_lora(hub, inner, adapter['inner'], name)
    for module, arrays in _matrices(hub, adapter['gates']):
        for each, value in arrays.items():
            tensors[f'{module}.loras.{name}.gate.{each}'] = value[None]
    return tensors, config | {'use_gating': True}


def _write_prefix(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    arguments, sites, ordered = about.arguments, adapter['sites'], cores(hub.model)
    if arguments['shift_positions']:
        raise ValueError('a prefix of AdapterHub moves no positions: write shift_positions=False')
    if set(sites) != set(ordered):
        raise ValueError(f'AdapterHub has prefixes at all layers, here are {sorted(sites)}')
    if arguments['projection'] is not None and 'network' not in adapter:
        raise ValueError('a prefix with a projection lacks its network')
    stack = hub.model.sites.modules[ordered[0]].stack
    layers = stack[0] if stack else len(ordered)

    def of_layer(leaf: str, layer: int) -> np.ndarray:
        return np.asarray(sites[ordered[0]][leaf][layer] if stack else sites[ordered[layer]][leaf])

    def row(key: str, value: str) -> np.ndarray:
        """`[..., 2 layers K H]`: key, then value, layer by layer."""
        pairs = [of_layer(leaf, layer) for layer in range(layers) for leaf in (key, value)]
        return np.stack(pairs, axis=-3).reshape(*pairs[0].shape[:-2], -1)

    flat = arguments['projection'] is None
    if flat:
        shared = {'control_trans': row('key', 'value').reshape(-1)}
    else:
        network = {leaf: np.asarray(value) for leaf, value in adapter['network'].items()}
        shared = {
            'wte.weight': network['embedding'],
            'control_trans.0.weight': network['kernel'].T,
            'control_trans.0.bias': network['bias'],
            'control_trans.2.weight': row('key', 'value').T,
            'control_trans.2.bias': row('key_bias', 'value_bias'),
        }
    tensors = {}
    for layer in range(layers):
        place = f'{hub.places.core.format(layer=layer)}.prefix_tuning'
        for each, value in shared.items():
            # It stands in the file once for each layer, and once for all.
            tensors[f'{place}.pool.prefix_tunings.{name}.self_prefix.{each}'] = value
            tensors[f'prefix_tuning.prefix_tunings.{name}.self_prefix.{each}'] = value
        if arguments['gate']:
            for leaf, each in (('gate', 'weight'), ('gate_bias', 'bias')):
                tensors[f'{place}.prefix_gates.{name}.{each}'] = of_layer(leaf, layer)[None]
    return tensors, {
        **{'architecture': 'prefix_tuning', 'cross_prefix': True, 'dropout': 0.0},
        **{'encoder_prefix': True, 'flat': flat, 'init_weights_seed': None, 'leave_out': []},
        **{'non_linearity': 'tanh', 'shared_gating': True, 'use_gating': arguments['gate']},
        'bottleneck_size': 512 if flat else arguments['projection'],
        'prefix_length': arguments['num_virtual_tokens'],
    }


def _matrices(hub: Hub, entries: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, np.ndarray]]]:
    for path, arrays in entries.items():
        slot = hub.names.slots[path]
        for index, tensor in enumerate(slot.names):
            yield (
                tensor.removesuffix('.weight'),
                {ours: sliced(slot, value, index) for ours, value in arrays.items()},
            )


def _chosen(hub: Hub, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say which matrices are adapted."""
    places = hub.places
    known = {**places.attention, 'intermediate': places.intermediate, 'output': places.output}
    kinds: dict[str, set[int]] = {}
    for module, _ in _matrices(hub, entries):
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
    everything = range(hub.model.config.num_hidden_layers)  # pyright: ignore[reportOptionalMemberAccess]
    attention = [kind for kind in places.attention if kind in kinds]
    return {
        'selfattn_lora': bool(attention),
        'attn_matrices': attention or ['q', 'v'],
        'intermediate_lora': 'intermediate' in kinds,
        'output_lora': 'output' in kinds,
        'leave_out': [layer for layer in everything if layer not in layers],
    }


_WRITERS: dict[str, Callable[[Hub, About, Any, str], Written]] = {
    **dict.fromkeys(('bottleneck', 'houlsby', 'pfeiffer', 'parallel_adapter'), _write_bottleneck),
    **{'compacter': _write_compacter, 'lora': _write_lora, 'gated': _write_gated},
    **{'ia3': _write_ia3, 'prefix_tuning': _write_prefix},
}
