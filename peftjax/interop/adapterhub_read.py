"""AdapterHub's files (the `adapters` library) as methods of ours.

A file holds one adapter under a name of its own.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from peftjax.core.base import Model
from peftjax.core.combine import chain
from peftjax.interop.adapterhub_names import COMPACTER_TABLE, Hub, Table, bottleneck_table
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft_config import PeftConfig
from peftjax.interop.peft_names import stacked
from peftjax.interop.peft_prompts import cores
from peftjax.interop.peft_read import Found, Part, bias_named, literal
from peftjax.methods.bottleneck import bottleneck
from peftjax.methods.compacter import compacter
from peftjax.methods.gated import gated
from peftjax.methods.ia3 import ia3
from peftjax.methods.lora import lora
from peftjax.methods.prefix_tuning import prefix_tuning
from peftjax.models.names import Slot

# How it was trained, or what the tensors say as well.
_SAID_ELSEWHERE = (
    *('dropout', 'init_weights', 'init_weights_seed', 'stochastic_depth', 'leave_out'),
    *('mh_adapter', 'output_adapter', 'reduction_factor', 'hypercomplex_nonlinearity'),
    *(
        'inv_adapter_reduction_factor',
        'phm_dim',
        'phm_rank',
        'phm_c_init',
        'phm_init_range',
        'learn_phm',
    ),
    *('attn_matrices', 'selfattn_lora', 'intermediate_lora', 'output_lora', 'dtype'),
)
_ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_orig': 'gelu', 'silu': 'swish'}


def read(model: Model, raw: Mapping[str, Any], tensors: dict[str, np.ndarray], where: str) -> Part:
    """The method and the adapter of a file; what is read is taken out of `tensors`.

    Raises:
        CheckpointError: a method, or a setting of it, that is not built here; tensors that are
            missing, misshapen or for another model.
    """
    hub, inner, name = Hub(model), raw.get('config'), raw.get('name')
    if not isinstance(inner, Mapping) or not isinstance(name, str):
        raise CheckpointError(f'{where}: adapter_config.json names no adapter, or has no config')
    for full in list(tensors):
        tensors[full.removeprefix(hub.prefix)] = tensors.pop(full)
    if inner.get('architecture') != 'union':
        return _read_one(hub, PeftConfig(inner, where), tensors, name)
    members = inner.get('configs')
    if not isinstance(members, list) or not all(isinstance(each, Mapping) for each in members):
        raise CheckpointError(f'{where}: a union has a list of configs, not {str(members)[:60]}')
    if strange := sorted(set(inner) - {'architecture', 'configs'}):
        raise CheckpointError(f'{where}: {strange} of a union are unknown')
    # Weights first: what stands behind a sublayer sees what they make.
    order = sorted(members, key=lambda each: each.get('architecture') != 'lora')
    parts = [_read_one(hub, PeftConfig(each, where), tensors, name) for each in order]
    if not parts:
        raise CheckpointError(f'{where}: a union of nothing')
    transforms, adapters = zip(*parts, strict=True)
    return chain(*transforms), tuple(adapters)


def _read_one(hub: Hub, config: PeftConfig, tensors: dict[str, np.ndarray], name: str) -> Part:
    kind = config.get('architecture')
    readers: dict[Any, Callable[..., Part]] = {
        **{'lora': _read_lora, 'prefix_tuning': _read_prefix},
        **{None: _read_bottleneck, 'bottleneck': _read_bottleneck},
    }
    if not isinstance(kind, str | None) or kind not in readers:
        reason = ''
        if kind == 'reft':
            reason = '; its file does not say whether the projection is subtracted (NoReFT, DiReFT)'
        raise CheckpointError(
            f'{config.where}: architecture {str(kind)[:40]!r} of AdapterHub is not read{reason}; '
            'bottlenecks, Compacter, LoRA, (IA)³, prefixes and unions of them are'
        )
    part = readers[kind](hub, config, tensors, name)
    for field in _SAID_ELSEWHERE:
        config.get(field)
    config.check_all_read()
    return part


def _read_lora(hub: Hub, config: PeftConfig, tensors: dict[str, np.ndarray], name: str) -> Part:
    found = Found(hub.model, hub.names, config, tensors, config.where)
    config.must_be('use_dora', False)
    for field in ('vera_b', 'vera_d'):
        config.must_be(field, None)
    config.must_be('composition_mode', 'add', 'scale')
    gates = _switch(config, 'use_gating')
    rank, alpha, suffix = config.whole('r'), config.number('alpha'), f'.loras.{name}.lora_'
    if config['composition_mode'] == 'scale':
        if (rank, alpha, gates) != (1, 1, False):
            raise CheckpointError(
                f'{found.where}: (IA)³ has r and alpha 1 and no gates, not {rank}, {alpha}, {gates}'
            )
        modules = found.take({'l': f'{suffix}B'})
        entries = found.entries(
            {
                module: bias_named(found, module, {'output': arrays['l'].reshape(-1)}, 'output')
                for module, arrays in modules.items()
            }
        )
        return ia3(targets=literal(entries)), entries
    wrong = [
        n
        for n, value in tensors.items()
        if suffix in n and (value.ndim != 2 or rank not in value.shape)
    ]
    if wrong:
        raise CheckpointError(f'{found.where}: {wrong[:4]} are no factors of rank {rank}')
    modules = found.take({'a': f'{suffix}A', 'b': f'{suffix}B'})
    if not modules:
        raise CheckpointError(f'{found.where} holds no LoRA called {name!r}')
    entries = found.entries({m: {n: v.T for n, v in each.items()} for m, each in modules.items()})
    if not gates:
        return lora(rank=rank, alpha=alpha, targets=literal(entries)), entries
    weights = found.take({each: f'.loras.{name}.gate.{each}' for each in ('weight', 'bias')})
    values = {
        module: {each: _first(value, module, config.where) for each, value in arrays.items()}
        for module, arrays in weights.items()
    }
    if set(values) != set(modules):
        raise CheckpointError(f'{found.where} has gates at {len(values)} of {len(modules)} modules')
    # The gate stands in place of alpha / r.
    inner = lora(rank=rank, alpha=rank, targets=literal(entries))
    return gated(inner), {'inner': entries, 'gates': found.by_leaf(values)}


def _switch(config: PeftConfig, field: str) -> bool:
    """A field that is true or false; left out, it is false."""
    config.must_be(field, False, True)
    return bool(config.get(field))


def _first(value: np.ndarray, name: str, where: str) -> np.ndarray:
    """What a leading axis of one holds."""
    if value.ndim < 1 or len(value) != 1:
        raise CheckpointError(f'{where}: {name} is {value.shape}, needs a first axis of one')
    return value[0]


def _read_prefix(hub: Hub, config: PeftConfig, tensors: dict[str, np.ndarray], name: str) -> Part:
    config.must_be('non_linearity', 'tanh')
    config.must_be('shared_gating', True)
    config.must_be('leave_out', [])
    for field in ('cross_prefix', 'encoder_prefix'):
        config.get(field)  # of models with two stacks
    length, flat = config.whole('prefix_length'), _switch(config, 'flat')
    gates, size = _switch(config, 'use_gating'), config.whole('bottleneck_size')
    paths = cores(hub.model)
    site = hub.model.sites.modules[paths[0]]
    heads, width = site.inputs[1][-2:]
    layers = site.stack[0] if site.stack else len(paths)
    row = 2 * layers * heads * width

    def array(ending: str, *shape: int | None) -> np.ndarray:
        """It stands in the file for each layer and once for all."""
        found = [
            n
            for n in tensors
            if re.search(rf'prefix_tunings\.{re.escape(name)}\.\w+_prefix\.{ending}$', n)
        ]
        values = [tensors.pop(n) for n in found]
        fits = values and all(
            len(value.shape) == len(shape)
            and all(wanted in (None, n) for n, wanted in zip(value.shape, shape, strict=True))
            and np.array_equal(value, values[0])
            for value in values
        )
        if not fits:
            raise CheckpointError(
                f'{config.where}: {ending} of {name!r} is {[v.shape for v in values][:4]}, needs '
                f'{shape}, the same wherever it stands'
            )
        return values[0]

    def split(value: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Keys and values of each layer."""
        parts = value.reshape(*value.shape[:-1], layers, 2, heads, width)
        return [(parts[..., i, 0, :, :], parts[..., i, 1, :, :]) for i in range(layers)]

    made: list[dict[str, np.ndarray]] = []
    network = {}
    if flat:
        for key, value in split(array('control_trans', length * row).reshape(length, row)):
            made.append({'key': key, 'value': value})
    else:
        kernels = split(array(r'control_trans\.2\.weight', row, size).T)
        biases = split(array(r'control_trans\.2\.bias', row))
        for kernel, bias in zip(kernels, biases, strict=True):
            leaves = zip(('key', 'value', 'key_bias', 'value_bias'), (*kernel, *bias), strict=True)
            made.append(dict(leaves))
        network['network'] = {
            'embedding': array(r'wte\.weight', length, None),
            'kernel': array(r'control_trans\.0\.weight', size, None).T,
            'bias': array(r'control_trans\.0\.bias', size),
        }
    if gates:
        for number, leaves in enumerate(made):
            for ours, theirs in (('gate', 'weight'), ('gate_bias', 'bias')):
                ending = rf'layers?\.{number}\..*\.prefix_gates\.{re.escape(name)}\.{theirs}'
                (full,) = [n for n in tensors if re.search(ending, n)] or ('',)
                if not full:
                    raise CheckpointError(
                        f'{config.where} lacks {theirs} of a gate in layer {number}'
                    )
                leaves[ours] = _first(tensors.pop(full), full, config.where)
    for leaf in made[0]:
        if len(shapes := {each[leaf].shape for each in made}) > 1:
            raise CheckpointError(f'{config.where}: {leaf} has shapes {sorted(shapes)} by layer')
    if site.stack:
        sites = {paths[0]: {leaf: np.stack([each[leaf] for each in made]) for leaf in made[0]}}
    else:
        sites = dict(zip(paths, made, strict=True))
    transform = prefix_tuning(
        num_virtual_tokens=length,
        projection=None if flat else size,
        gate=gates,
        shift_positions=False,
        targets=literal(paths),
    )
    return transform, {'sites': sites, **network}


def _read_bottleneck(
    hub: Hub, config: PeftConfig, tensors: dict[str, np.ndarray], name: str
) -> Part:
    where = config.where
    for field in (
        'adapter_residual_before_ln',
        'cross_adapter',
        'shared_W_phm',
        'factorized_phm_rule',
    ):
        config.must_be(field, False)
    for field in ('residual_before_ln', 'original_ln_after'):
        config.must_be(field, True)
    config.must_be('inv_adapter', None)
    learned = config.get('scaling', 1.0) == 'learned'
    arguments = {
        'activation': config.plain('non_linearity', lambda word: _ACTIVATIONS.get(word, word)),
        'reads': 'after' if _switch(config, 'original_ln_before') else 'output',
    }
    if _switch(config, 'is_parallel'):
        arguments['reads'] = 'input'
    settings = {
        'scale': 'learned' if learned else config.number('scaling', 1.0),
        'norm_before': _switch(config, 'ln_before'),
        'norm_after': _switch(config, 'ln_after'),
        'gate': _switch(config, 'use_gating'),
    }
    phm = _switch(config, 'phm_layer')
    for field in ('factorized_phm_W', 'shared_phm_rule', 'phm_bias'):
        config.must_be(field, True)
    table = COMPACTER_TABLE if phm else bottleneck_table(settings)
    if settings['norm_before'] and not phm:
        _drop_second_norm(tensors, name, where)
    sites = _take(hub, tensors, where, name, table)
    size = {leaves['down_bias'].shape[-1] for leaves in sites.values()}
    if len(size) != 1:
        raise CheckpointError(f'{where} has bottlenecks of sizes {sorted(size)}; one is built here')
    targets = literal(sites)
    try:
        if not phm:
            made = bottleneck(size=size.pop(), targets=targets, **arguments, **settings)
            return made, sites
        if settings != {'scale': 1.0, 'norm_before': False, 'norm_after': False, 'gate': False}:
            raise CheckpointError(f'{where}: Compacter with {settings} is not built here')
        rule = tensors.pop(f'shared_parameters.{name}.phm_rule', None)
        if rule is None:
            raise CheckpointError(f'{where} lacks shared_parameters.{name}.phm_rule')
        terms, rank = config.whole('phm_dim'), config.whole('phm_rank')
        made = compacter(size=size.pop(), targets=targets, terms=terms, rank=rank, **arguments)
        return made, {'shared': {'rule': rule}, 'sites': sites}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f'{where}: {error}') from error


def _drop_second_norm(tensors: dict[str, np.ndarray], name: str, where: str) -> None:
    """Takes out the norm's second name, under which the file holds it too."""
    for first in [n for n in tensors if f'.adapters.{name}.adapter_down.0.' in n]:
        other = first.replace('adapter_down.0', 'adapter_norm_before')
        if other not in tensors or not np.array_equal(tensors[first], tensors[other]):
            raise CheckpointError(f'{where}: {first} and {other} are one norm and differ')
        del tensors[first]


def _take(
    hub: Hub, tensors: dict[str, np.ndarray], where: str, name: str, table: Table
) -> dict[str, dict[str, np.ndarray]]:
    """`{our module: {our leaf: array}}` of all adapters of that name."""
    inside = f'.adapters.{name}.'
    layers: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    slots: dict[str, Slot] = {}
    for location in sorted({n.partition(inside)[0] for n in tensors if inside in n}):
        found = hub.branch(location)
        if found is None:
            raise CheckpointError(
                f'{where}: {location} is no place of an adapter in this model; its places are '
                f'{", ".join(hub.places.branches)}'
            )
        slot, index = found
        slots[slot.path] = slot
        leaves = layers.setdefault(slot.path, {})[index] = {}
        for ours, theirs, how in table:
            value = tensors.pop(f'{location}{inside}{theirs}', None)
            if value is None:
                raise CheckpointError(f'{where} lacks {location}{inside}{theirs}')
            if how == 'first':
                value = _first(value, f'{location}{inside}{theirs}', where)
            leaves[ours] = value.T if how == 'transposed' else value
    if not layers:
        raise CheckpointError(f'{where} holds no bottleneck called {name!r}')
    return {path: stacked(slots[path], each, where) for path, each in layers.items()}
