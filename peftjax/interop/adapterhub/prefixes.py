"""AdapterHub's prefixes and prompts."""

import re
from typing import Any

import numpy as np

from peftjax.core.transform import About
from peftjax.interop.adapterhub.file import Arrays, File, Part, Written, entries
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import literal
from peftjax.interop.peft.prompts import cores
from peftjax.methods.prompts.prefix_tuning import prefix_tuning
from peftjax.methods.prompts.prompt_tuning import prompt_tuning


def read(file: File) -> Part:
    config = file.config
    if file.hub.places.core is None:
        raise CheckpointError(f'{file.where}: {_UNSHIFTED}')
    config.must_be('non_linearity', 'tanh')
    config.must_be('shared_gating', True)
    config.must_be('leave_out', [])
    for field in ('cross_prefix', 'encoder_prefix'):
        config.get(field)  # of models with two stacks
    length, flat, gates = (
        config.whole('prefix_length'),
        file.switch('flat'),
        file.switch('use_gating'),
    )
    size = config.whole('bottleneck_size')
    paths = cores(file.hub.model)
    site = file.hub.model.sites.modules[paths[0]]
    heads, width = site.inputs[1][-2:]
    layers = site.stack[0] if site.stack else len(paths)
    row = 2 * layers * heads * width

    def split(value: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Keys and values of each layer."""
        parts = value.reshape(*value.shape[:-1], layers, 2, heads, width)
        return [(parts[..., i, 0, :, :], parts[..., i, 1, :, :]) for i in range(layers)]

    network: dict[str, Arrays] = {}
    made: list[Arrays]
    if flat:
        rows = _repeated(file, 'control_trans', length * row).reshape(length, row)
        made = [{'key': key, 'value': value} for key, value in split(rows)]
    else:
        kernels = split(_repeated(file, 'control_trans.2.weight', row, size).T)
        biases = split(_repeated(file, 'control_trans.2.bias', row))
        names = 'key', 'value', 'key_bias', 'value_bias'
        made = [
            dict(zip(names, (*kernel, *bias), strict=True))
            for kernel, bias in zip(kernels, biases, strict=True)
        ]
        network['network'] = {
            'embedding': _repeated(file, 'wte.weight', length, None),
            'kernel': _repeated(file, 'control_trans.0.weight', size, None).T,
            'bias': _repeated(file, 'control_trans.0.bias', size),
        }
    if gates:
        made = [{**leaves, **_gate(file, number)} for number, leaves in enumerate(made)]
    for leaf in made[0]:
        if len(shapes := {each[leaf].shape for each in made}) > 1:
            raise CheckpointError(f'{file.where}: {leaf} has shapes {sorted(shapes)} by layer')
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
    return transform, {'sites': entries('prefix_tuning', sites), **network}


_UNSHIFTED = (
    'AdapterHub puts a prefix of T5 in front of the keys and shifts their distances from queries '
    'by its length, which no prefix here does; peftjax.save keeps a prefix of ours'
)


def _gate(file: File, layer: int) -> Arrays:
    place = (
        f'{str(file.hub.places.core).format(layer=layer)}.prefix_tuning.prefix_gates.{file.name}'
    )
    leaves: Arrays = {}
    for ours, theirs in (('gate', 'weight'), ('gate_bias', 'bias')):
        tensor = f'{place}.{theirs}'
        leaves[ours] = file.first(file.take(tensor), tensor)
    return leaves


def _repeated(file: File, ending: str, *shape: int | None) -> np.ndarray:
    """A tensor that the file holds for each layer and once for all."""
    place = rf'prefix_tunings\.{re.escape(file.name)}\.\w+_prefix\.{re.escape(ending)}$'
    names = [n for n in file.tensors if re.search(place, n)]
    if not names:
        raise CheckpointError(f'{file.where} lacks {ending} of a prefix called {file.name!r}')
    values = [file.take(name, *shape) for name in names]
    if not all(np.array_equal(value, values[0]) for value in values):
        raise CheckpointError(
            f'{file.where}: {ending} of {file.name!r} differs between {names[:4]}'
        )
    return values[0]


def write(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    arguments, sites, ordered = about.arguments, adapter['sites'], cores(hub.model)
    if hub.places.core is None:
        raise ValueError(_UNSHIFTED)
    if arguments['shift_positions']:
        raise ValueError('a prefix of AdapterHub moves no positions: write shift_positions=False')
    if set(sites) != set(ordered):
        raise ValueError(f'AdapterHub has prefixes at all layers, not only {sorted(sites)}')
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
    tensors: Arrays = {}
    for layer in range(layers):
        place = f'{hub.places.core.format(layer=layer)}.prefix_tuning'
        for each, value in shared.items():
            # The file holds it once for each layer, and once for all.
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


_COMBINED = {'prefix': 0, 'prefix_after_bos': 1}


def read_prompt(file: File) -> Part:
    """A prompt after the model's embeddings, among tokens that keep their positions."""
    config, places = file.config, file.hub.places
    if not places.prompts:
        raise CheckpointError(f'{file.where}: AdapterHub has no prompt tuning for this family')
    for field in ('prompt_init', 'prompt_init_text', 'random_uniform_scale'):
        config.get(field)
    config.must_be('combine', *_COMBINED)
    count = config.whole('prompt_length')
    prompt = file.take(_prompt(file.name), count, None)
    assert places.embeddings is not None
    transform = prompt_tuning(
        num_virtual_tokens=count,
        init='normal',
        places=(_COMBINED[config['combine']],) * count,
        keep_virtual=True,
        shift_positions=False,
        targets=literal([places.embeddings]),
    )
    return transform, entries('prompt_tuning', {places.embeddings: {'prompt': prompt}})


def write_prompt(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    arguments, count = about.arguments, about.arguments['num_virtual_tokens']
    before = set(arguments['places'] or (0,) * count)
    combined = [word for word, place in _COMBINED.items() if before == {place}]
    fits = arguments['keep_virtual'] and not arguments['shift_positions'] and combined
    if not hub.places.prompts or not fits or set(adapter) != {hub.places.embeddings}:
        raise ValueError(
            'AdapterHub has prompts for BERT and RoBERTa, behind the embeddings and in front of '
            'all tokens or behind the first: write keep_virtual=True, shift_positions=False and '
            f'targets={hub.places.embeddings!r}'
        )
    prompt = np.asarray(adapter[hub.places.embeddings]['prompt'])
    return {_prompt(name): prompt}, {
        **{'architecture': 'prompt_tuning', 'combine': combined[0], 'init_weights_seed': None},
        **{'prompt_init': 'random_uniform', 'prompt_init_text': None, 'prompt_length': count},
    }


def _prompt(name: str) -> str:
    return f'prompt_tuning.prompt_tunings.{name}.prompt_embedding.weight'


WRITERS = {'prefix_tuning': write, 'prompt_tuning': write_prompt}
