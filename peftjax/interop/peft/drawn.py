"""Arrays in a file of peft besides the adapter's: places of entries, and projections."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.format import Array, Drawn
from peftjax.methods import torch_draws
from peftjax.methods.draws import distinct
from peftjax.methods.low_rank.vera import drawn_projections


def _places(key: str) -> Callable[[Any, Mapping[str, Any], dict[str, Array]], dict[str, Array]]:
    """Places that the file holds as `[2, k]` rows and columns of [out, in]."""

    def load(
        config: Mapping[str, Any], modules: Mapping[str, Any], tensors: dict[str, Array]
    ) -> dict[str, Array]:
        del config
        found = {}
        for leaf, (module, inputs, outputs) in modules.items():
            columns, rows = _taken(tensors, f'{module}.{key}')
            if columns.min() < 0 or rows.min() < 0:
                raise CheckpointError(f'{module}.{key} has negative places')
            if columns.max() >= outputs or rows.max() >= inputs:
                raise CheckpointError(f'{module}.{key} has places outside of [{outputs}, {inputs}]')
            found[leaf] = (rows * outputs + columns).astype(np.int32)
        return found

    return load


def _taken(tensors: dict[str, Array], name: str) -> Array:
    if name not in tensors:
        raise CheckpointError(f'the adapter lacks the tensor {name}')
    return tensors.pop(name)


def _saved_places(
    arguments: Mapping[str, Any], entries: Mapping[str, Any], modules: Mapping[str, Any]
) -> dict[str, Array]:
    tensors = {}
    for path, entry in entries.items():
        layout, count = entry.layout, entry['values'].shape[-1]
        places = (
            distinct(
                arguments['seed'], path, count, layout.inputs * layout.outputs, layout.stack_shape
            )
            if arguments['positions'] is None
            else np.asarray(arguments['positions'][path])
        ).reshape(-1, count)
        for module, each in zip(modules[path], places, strict=True):
            rows, columns = np.divmod(each, layout.outputs)
            tensors[f'base_model.model.{module}.shira_indices'] = np.stack([columns, rows])
    return tensors


def _projections(
    config: Mapping[str, Any], modules: Mapping[str, Any], tensors: dict[str, Array]
) -> tuple[Array, Array]:
    names = 'base_model.vera_A', 'base_model.vera_B'
    if config.get('save_projection', True):
        a, b = (_taken(tensors, name) for name in names)
        return a.T, b.T
    widest = (max(each[side] for each in modules.values()) for side in (1, 2))
    a, b = torch_draws.kaiming_pair(config['projection_prng_key'], config['r'], *widest)
    return a.T, b.T


def _saved_projections(
    arguments: Mapping[str, Any], entries: Mapping[str, Any], modules: Mapping[str, Any]
) -> dict[str, Array]:
    del modules
    given = arguments['projections']
    if given is None:
        layouts = [entry.layout for entry in entries.values()]
        if len({layout.inputs for layout in layouts}) > 1:
            raise ValueError(
                'a file of peft holds one pair of projections, and those that vera draws differ in '
                'scale with the input size: adapt matrices of one input size, or give projections'
            )
        widest = max(layouts, key=lambda layout: layout.outputs)
        given = drawn_projections(
            arguments['seed'], arguments['rank'], widest.inputs, widest.outputs
        )
    a, b = given
    return {'base_model.vera_A': np.transpose(a), 'base_model.vera_B': np.transpose(b)}


PLACES = Drawn('positions', _places('shira_indices'), _saved_places)
PROJECTIONS = Drawn('projections', _projections, _saved_projections)
