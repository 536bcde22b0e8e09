"""Prompts, prefixes and unions with them as peft and AdapterHub write them."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
from safetensors.numpy import load_file

import peftjax
from tests.oracle.additive import bottleneck, gated_lora
from tests.oracle.cases import Case, Converted, Tensors
from tests.oracle.names import with_saved

_EMBEDDING = {
    'bert': 'embeddings/word_embeddings',
    'llama': 'embed_tokens',
    'gpt2': 'wte',
}


def _cores(case: Case) -> list[str]:
    """Our attention cores, the first layer's first."""
    found = [path for path in case.model.sites.modules if path.endswith('/core')]
    return sorted(found)


def _split(array: np.ndarray, case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys and values `[..., K, H]` of each layer, from `[..., 2 layers K H]`."""
    shape = case.model.sites.modules[_cores(case)[0]].inputs[1][-2:]
    parts = array.reshape(*array.shape[:-1], -1, 2, *shape)
    return [(parts[..., i, 0, :, :], parts[..., i, 1, :, :]) for i in range(parts.shape[-4])]


def prefix(case: Case) -> Converted:
    """peft's, direct or with its network, which is saved beside the adapter for resuming."""
    cores = _cores(case)
    projected = case.config['prefix_projection']

    def convert(tensors: Tensors) -> dict[str, object]:
        if not projected:
            rows = tensors.get('prompt_embeddings', tensors.get('embedding.weight'))
            pairs = _split(rows, case)
            return {
                'sites': {
                    path: {'key': key, 'value': value}
                    for path, (key, value) in zip(cores, pairs, strict=True)
                }
            }
        if 'embedding.weight' not in tensors:
            tensors = {**tensors, **load_file(case.folder / 'encoder.safetensors')}
        kernels = _split(tensors['transform.2.weight'].T, case)
        biases = _split(tensors['transform.2.bias'], case)
        return {
            'sites': {
                path: {
                    'key': key,
                    'value': value,
                    'key_bias': key_bias,
                    'value_bias': value_bias,
                }
                for path, (key, value), (key_bias, value_bias) in zip(
                    cores, kernels, biases, strict=True
                )
            },
            'network': _network(tensors, 'embedding.weight', 'transform.0.'),
        }

    transform = peftjax.prefix_tuning(
        num_virtual_tokens=case.config['num_virtual_tokens'],
        projection=case.config['encoder_hidden_size'] if projected else None,
        embedding=case.config['token_dim'] if projected else None,
        targets=tuple(cores),
    )
    return with_saved(case, Converted(transform, convert))


def _network(tensors: Tensors, embedding: str, first: str) -> dict[str, np.ndarray]:
    return {
        'embedding': tensors[embedding],
        'kernel': tensors[f'{first}weight'].T,
        'bias': tensors[f'{first}bias'],
    }


def prompt(case: Case) -> Converted:
    path = _EMBEDDING[case.base_architecture]

    def convert(tensors: Tensors) -> dict[str, object]:
        return {path: {'prompt': tensors.get('prompt_embeddings', tensors.get('embedding.weight'))}}

    transform = peftjax.prompt_tuning(
        num_virtual_tokens=case.config['num_virtual_tokens'],
        init='normal',
        keep_virtual=True,
        targets=path,
    )
    return with_saved(case, Converted(transform, convert))


def encoded(case: Case) -> Converted:
    path = _EMBEDDING[case.base_architecture]
    lstm = case.config['encoder_reparameterization_type'] == 'LSTM'
    depth = case.config['encoder_num_layers']

    def dense(tensors: Tensors, number: int) -> dict[str, np.ndarray]:
        name = f'mlp_head.{number}'
        return {'kernel': tensors[f'{name}.weight'].T, 'bias': tensors[f'{name}.bias']}

    def way(tensors: Tensors, layer: int, ending: str) -> dict[str, np.ndarray]:
        def of(name: str) -> np.ndarray:
            return tensors[f'lstm_head.{name}_l{layer}{ending}']

        return {
            'kernel': of('weight_ih').T,
            'recurrent': of('weight_hh').T,
            'bias': of('bias_ih'),
            'recurrent_bias': of('bias_hh'),
        }

    def convert(tensors: Tensors) -> dict[str, object]:
        if 'embedding.weight' not in tensors:
            tensors = {**tensors, **load_file(case.folder / 'encoder.safetensors')}
        leaves: dict[str, object] = {
            'embedding': tensors['embedding.weight'],
            'layers': [dense(tensors, number) for number in ((0, 2) if lstm else (0, 2, 4))],
        }
        if lstm:
            leaves['lstm'] = [
                {'forward': way(tensors, i, ''), 'backward': way(tensors, i, '_reverse')}
                for i in range(depth)
            ]
        return {path: leaves}

    transform = peftjax.p_tuning(
        num_virtual_tokens=case.config['num_virtual_tokens'],
        encoder='lstm' if lstm else 'mlp',
        hidden=case.config['encoder_hidden_size'],
        num_layers=depth,
        keep_virtual=True,
        targets=path,
    )
    return with_saved(case, Converted(transform, convert))


def hub_prefix(case: Case) -> Converted:
    return with_saved(case, _hub_prefix(case, case.config['config']))


def _hub_prefix(case: Case, config: dict) -> Converted:
    cores = _cores(case)

    def array(tensors: Tensors, name: str) -> np.ndarray:
        # The same prefix stands in the file once for each layer; its gradient stands once.
        return tensors[_ending(tensors, rf'(self|encoder)_prefix\.{re.escape(name)}')]

    def gate(tensors: Tensors, path: str) -> dict[str, np.ndarray]:
        number = re.match(r'layers_(\d+)/', path)[1]
        gate = rf'layers?\.{number}\..*\.prefix_gates\.a'
        return {
            'gate': tensors[_ending(tensors, rf'{gate}\.weight')][0],
            'gate_bias': tensors[_ending(tensors, rf'{gate}\.bias')][0],
        }

    def convert(tensors: Tensors) -> dict[str, object]:
        if config['flat']:
            flat = array(tensors, 'control_trans')
            pairs = _split(flat.reshape(config['prefix_length'], -1), case)
            sites = {
                path: {'key': key, 'value': value}
                for path, (key, value) in zip(cores, pairs, strict=True)
            }
            return {'sites': sites}
        kernels = _split(array(tensors, 'control_trans.2.weight').T, case)
        biases = _split(array(tensors, 'control_trans.2.bias'), case)
        sites = {}
        for path, kernel, bias in zip(cores, kernels, biases, strict=True):
            sites[path] = dict(
                zip(('key', 'value', 'key_bias', 'value_bias'), (*kernel, *bias), strict=True)
            )
            if config['use_gating']:
                sites[path] |= gate(tensors, path)
        network = {
            'embedding': array(tensors, 'wte.weight'),
            'kernel': array(tensors, 'control_trans.0.weight').T,
            'bias': array(tensors, 'control_trans.0.bias'),
        }
        return {'sites': sites, 'network': network}

    transform = peftjax.prefix_tuning(
        num_virtual_tokens=config['prefix_length'],
        projection=None if config['flat'] else config['bottleneck_size'],
        gate=config['use_gating'],
        shift_positions=False,
        targets=tuple(cores),
    )
    return Converted(transform, convert)


def _ending(tensors: Tensors, pattern: str) -> str:
    """The first name that ends as the pattern says."""
    found = [name for name in sorted(tensors) if re.search(rf'(^|\.){pattern}$', name)]
    if not found:
        raise KeyError(f'no tensor ends with {pattern}')
    return found[0]


def union(case: Case) -> Converted:
    """AdapterHub's MAM and UniPELT: their parts, chained as ours are."""
    parts = {part['architecture'] or 'bottleneck': part for part in _parts(case)}

    def only(part: str) -> Case:
        return dataclasses.replace(case, config={**case.config, 'config': parts[part]})

    chained = [_hub_prefix(case, parts['prefix_tuning']), bottleneck(only('bottleneck'))]
    if 'lora' in parts:
        chained.insert(0, gated_lora(only('lora')))

    def convert(tensors: Tensors) -> tuple[object, ...]:
        return tuple(part.convert(tensors) for part in chained)

    return Converted(peftjax.chain(*(part.transform for part in chained)), convert)


def _parts(case: Case) -> list[dict]:
    return [{'architecture': None, **part} for part in case.config['config']['configs']]


def _adaption(case: Case) -> Converted:
    # The topmost layers, as many as the config says.
    count = case.config['adapter_layers']
    cores = dict(enumerate(_cores(case)))
    chosen = {number: cores[number] for number in sorted(cores)[-count:]}
    name = 'base_model.model.model.layers.{}.self_attn.adaption_{}'

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        found = {}
        for number, core in chosen.items():
            kernel = case.model.sites.weights[f'{core.removesuffix("core")}k_proj/kernel']
            assert kernel.layout is not None
            arrays = {
                'prompt': tensors[name.format(number, 'prompt')][0],
                'gate': tensors[name.format(number, 'gate')][0],
            }
            found[core] = peftjax.WeightAdapter(kernel.layout, arrays)
        return found

    transform = peftjax.adaption_prompt(
        num_virtual_tokens=case.config['adapter_len'], targets=tuple(chosen.values())
    )
    return Converted(transform, convert)


CONVERTERS: dict[str, Callable[[Case], Converted]] = {
    'prefix_tuning': prefix,
    'prefix_tuning_projection': prefix,
    'prompt_tuning': prompt,
    'p_tuning_mlp': encoded,
    'p_tuning_lstm': encoded,
    'adaption_prompt': _adaption,
    'adapterhub prefix_tuning': hub_prefix,
    'adapterhub prefix_tuning_flat': hub_prefix,
    'adapterhub mam': union,
    'adapterhub unipelt': union,
}
