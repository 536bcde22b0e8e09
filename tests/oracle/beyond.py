"""What some files leave out, from beside them: encoders of prompts, and subspaces.

A prompt's file holds what its encoder made, and not the encoder that was trained. PSOFT's lacks the
singular vectors that it trained with. The methods of ours for these are judged all the same.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import peftjax
from peftjax import Entry
from peftjax.interop.peft.config import PeftConfig
from peftjax.interop.peft.found import Found
from peftjax.interop.peft.names import Names
from peftjax.interop.peft.prompts import cores, embedding_path
from peftjax.interop.peft.whole import read_whole
from tests.oracle.cases import Case, Tensors, arrays
from tests.oracle.reading import Reading, places_in_file

_SUBSPACES = 'subspaces.npz'
Convert = Callable[[Tensors], Any]


def completed(case: Case, model: peftjax.Model) -> Reading | None:
    """The method with what the file leaves out; None where the file says everything."""
    if (case.folder / 'encoder.safetensors').is_file():
        encoders = {'P_TUNING': _encoded_prompt, 'PREFIX_TUNING': _encoded_prefix}
        make = encoders.get(case.config['peft_type'])
        if case.config.get('prefix_projection') is False:
            make = None  # The prefix itself was trained.
        beside = load_file(case.folder / 'encoder.safetensors')
    else:
        make, beside = (_psoft if (case.folder / _SUBSPACES).is_file() else None), {}
    if make is not None:
        return _with_copies(case, model, *make(case, model), beside)
    return None


def _with_copies(
    case: Case,
    model: peftjax.Model,
    transform: peftjax.PeftTransform,
    convert: Convert,
    beside: Tensors,
) -> Reading:
    """The method behind the head that the file holds whole, if it does."""
    values = dict(beside)
    for name in case.gradients:
        if name not in beside:
            values[name] = case.tensors[places_in_file(case, name)[0]]

    def copies(values: Tensors) -> list[Any]:
        rest = {name: value for name, value in values.items() if 'modules_to_save' in name}
        return read_whole(_found(case, model, rest))

    selects = [part for part, _ in copies(values)]
    if not selects:
        return Reading(transform, convert, values)
    return Reading(
        peftjax.chain(*selects, transform),
        lambda values: (*(adapter for _, adapter in copies(values)), convert(values)),
        values,
    )


def _found(case: Case, model: peftjax.Model, tensors: Tensors) -> Found:
    config = PeftConfig(case.config, case.name)
    return Found(model, Names.of_file(model, case.tensors), config, dict(tensors), case.name)


def _dense(tensors: Tensors, name: str) -> Tensors:
    return {'kernel': tensors[f'{name}.weight'].T, 'bias': tensors[f'{name}.bias']}


def _encoded_prompt(case: Case, model: peftjax.Model) -> tuple[peftjax.PeftTransform, Convert]:
    path, config = embedding_path(model), case.config
    lstm = config['encoder_reparameterization_type'] == 'LSTM'
    names = {'kernel': 'weight_ih', 'recurrent': 'weight_hh'}
    names |= {'bias': 'bias_ih', 'recurrent_bias': 'bias_hh'}

    def way(tensors: Tensors, ending: str) -> Tensors:
        return {ours: tensors[f'lstm_head.{theirs}_{ending}'].T for ours, theirs in names.items()}

    def convert(tensors: Tensors) -> Any:
        dense = [
            _dense(tensors, f'mlp_head.{number}') for number in ((0, 2) if lstm else (0, 2, 4))
        ]
        # Of an encoder and a decoder the first alone has a prompt.
        rows = tensors['embedding.weight'][: config['num_virtual_tokens']]
        leaves: dict[str, Any] = {'embedding': rows, 'layers': dense}
        if lstm:
            leaves['lstm'] = [
                {'forward': way(tensors, f'l{i}'), 'backward': way(tensors, f'l{i}_reverse')}
                for i in range(config['encoder_num_layers'])
            ]
        return {path: Entry('p_tuning', leaves)}

    transform = peftjax.p_tuning(
        num_virtual_tokens=config['num_virtual_tokens'],
        encoder='lstm' if lstm else 'mlp',
        hidden=config['encoder_hidden_size'],
        num_layers=config['encoder_num_layers'],
        keep_virtual=True,
        targets=re.escape(path),
    )
    return transform, convert


def _encoded_prefix(case: Case, model: peftjax.Model) -> tuple[peftjax.PeftTransform, Convert]:
    found = cores(model)
    heads = model.sites.modules[found[0]].inputs[1][-2:]

    def split(array: np.ndarray) -> list[np.ndarray]:
        """Keys and values `[..., K, H]`, layer by layer."""
        parts = array.reshape(*array.shape[:-1], -1, *heads)
        return list(np.moveaxis(parts, -3, 0))

    def convert(tensors: Tensors) -> Any:
        last = _dense(tensors, 'transform.2')
        kernels, biases = split(last['kernel']), split(last['bias'])
        sites = {
            path: Entry(
                'prefix_tuning',
                {
                    **{'key': kernels[2 * layer], 'value': kernels[2 * layer + 1]},
                    **{'key_bias': biases[2 * layer], 'value_bias': biases[2 * layer + 1]},
                },
            )
            for layer, path in enumerate(found)
        }
        first = _dense(tensors, 'transform.0')
        return {'sites': sites, 'network': {'embedding': tensors['embedding.weight'], **first}}

    transform = peftjax.prefix_tuning(
        num_virtual_tokens=case.config['num_virtual_tokens'],
        projection=case.config['encoder_hidden_size'],
        embedding=case.config['token_dim'],
        targets=tuple(map(re.escape, found)),
    )
    return transform, convert


def _psoft(case: Case, model: peftjax.Model) -> tuple[peftjax.PeftTransform, Convert]:
    endings = {'k': '.psoft_R.weight', 'a': '.psoft_R.vector_a', 'b': '.psoft_R.vector_b'}

    def convert(tensors: Tensors) -> Any:
        found = _found(case, model, tensors)
        return found.entries('psoft', found.take(endings))

    beside, found = arrays(case.folder / _SUBSPACES), _found(case, model, case.tensors)
    subspaces = {
        found.place(name).slot.path: (beside[f'{name}.p'], beside[f'{name}.q'])
        for name in found.take(endings)
    }
    return peftjax.psoft(subspaces), convert
