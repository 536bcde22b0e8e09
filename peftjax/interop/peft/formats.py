"""Weight methods as Hugging Face's peft keeps them: tensors beside ours, fields beside arguments.

Its matrices are [out, in] and ours [in, out], so that most arrays come transposed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from peftjax.interop.errors import CheckpointError
from peftjax.methods import torch_draws
from peftjax.methods.boft import boft
from peftjax.methods.c3a import c3a
from peftjax.methods.delora import delora
from peftjax.methods.draws import distinct
from peftjax.methods.fourierft import fourierft
from peftjax.methods.gralora import gralora
from peftjax.methods.hira import hira
from peftjax.methods.hra import hra
from peftjax.methods.loha import loha
from peftjax.methods.lokr import lokr
from peftjax.methods.miss import miss
from peftjax.methods.oft import oft
from peftjax.methods.road import road
from peftjax.methods.shira import shira
from peftjax.methods.vera import drawn_projections, vera

Array = np.ndarray


class Tensor(NamedTuple):
    """One array of ours in the file: what stands behind the module's name, and the two ways."""

    ending: str
    load: Callable[[Array], Array] = np.asarray
    save: Callable[[Array], Array] = np.asarray


def _number(value: Any) -> Any:
    if isinstance(value, str) or not abs(value) < 1e30:
        raise ValueError('no number')
    return value


class Field(NamedTuple):
    """One argument of ours in the config, and the two ways."""

    theirs: str
    ours: str
    load: Callable[[Any], Any] = _number
    save: Callable[[Any], Any] = lambda value: value


class Drawn(NamedTuple):
    """What a method has besides its adapter, of all its matrices.

    argument: of ours. load: `(config, {matrix: (module, in, out)}, tensors) -> its value`, by
    matrix or for all, which pops from `tensors` what it reads. save: `(arguments, {leaf: entry},
    {leaf: modules}) -> tensors` for the file.
    """

    argument: str
    load: Callable[[Mapping[str, Any], Mapping[str, Any], dict[str, Array]], Any]
    save: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], dict[str, Array]]


class Format(NamedTuple):
    """A method on matrices, each on its own.

    Attributes:
        method: of ours.
        tensors: by the name of our array; those in `optional` need not be there.
        fields: of the config.
        fixed: further fields of the config with the one value that is understood.
        drawn: arrays that are not in the adapter.
        load_more, save_more: `(config, arrays of one matrix) -> arguments` and `(arguments) ->
            fields`, for what is not one field beside one argument.
        negated: whether, by the config, the arrays have the other sign in the file.
    """

    method: str
    tensors: Mapping[str, Tensor]
    fields: tuple[Field, ...]
    fixed: Mapping[str, Any] = {}
    optional: frozenset[str] = frozenset()
    drawn: Drawn | None = None
    load_more: Callable[[Mapping[str, Any], Mapping[str, Array]], dict[str, Any]] | None = None
    save_more: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    negated: Callable[[Mapping[str, Any]], bool] = lambda config: False


def _turned(ending: str) -> Tensor:
    return Tensor(ending, np.transpose, np.transpose)


def _column(ending: str) -> Tensor:
    """A vector that the file holds as `[out, 1]`."""
    return Tensor(ending, lambda value: value[:, 0], lambda value: value[:, None])


_RANK = Field('r', 'rank')
_ALPHA = Field('alpha', 'alpha')
_NO_BIAS = {'bias': 'none'}
_NO_PATTERNS = {'rank_pattern': {}, 'alpha_pattern': {}}
_NO_DROPOUT = {'rank_dropout': 0.0, 'module_dropout': 0.0, 'use_effective_conv2d': False}


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


def _save_fourierft(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if arguments['positions'] is not None or arguments['draws'] != 'torch':
        raise ValueError(
            'a file of peft holds the seed of the places and not the places: make fourierft with '
            "draws='torch' and no positions"
        )
    return {}


def _load_miss(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    del arrays
    kind, mini = config['init_weights'], config['mini_r']
    return {'bat': kind == 'bat', 'mini_rank': mini if kind == 'mini' else None}


def _save_miss(arguments: Mapping[str, Any]) -> dict[str, Any]:
    mini = arguments['mini_rank']
    kind = 'bat' if arguments['bat'] else True if mini is None else 'mini'
    return {'init_weights': kind, 'mini_r': 1 if mini is None else mini}


def _load_oft(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    del arrays
    eps, terms = config['eps'], config['num_cayley_neumann_terms']
    return {
        'eps': eps if config['coft'] else None,
        'neumann_terms': terms if config['use_cayley_neumann'] else None,
    }


def _save_oft(arguments: Mapping[str, Any]) -> dict[str, Any]:
    eps, terms = arguments['eps'], arguments['neumann_terms']
    return {
        'coft': eps is not None,
        'eps': 6e-5 if eps is None else eps,
        'use_cayley_neumann': terms is not None,
        'num_cayley_neumann_terms': 5 if terms is None else terms,
    }


def _load_boft(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    # One factor whatever the config says where the library had no extension: see `peftjax.boft`.
    for name in ('boft_block_size', 'boft_block_num', 'boft_n_butterfly_factor'):
        config.get(name)
    factors, _, size, _ = arrays['q'].shape
    return {'block_size': size, 'factors': factors, 'whole_blocks': True, 'scale': True}


def _save_boft(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if not (arguments['whole_blocks'] and arguments['scale']):
        raise ValueError('peft has BOFT with whole_blocks=True and scale=True only')
    return {
        'boft_block_size': arguments['block_size'],
        'boft_block_num': 0,
        'boft_n_butterfly_factor': arguments['factors'],
    }


FORMATS: dict[str, Format] = {
    'LOHA': Format(
        'loha',
        {
            'b1': _turned('.hada_w1_a'),
            'a1': _turned('.hada_w1_b'),
            'b2': _turned('.hada_w2_a'),
            'a2': _turned('.hada_w2_b'),
        },
        (_RANK, _ALPHA),
        {**_NO_PATTERNS, **_NO_DROPOUT},
    ),
    'LOKR': Format(
        'lokr',
        {
            'c': _turned('.lokr_w1'),
            'c_b': _turned('.lokr_w1_a'),
            'c_a': _turned('.lokr_w1_b'),
            'd': _turned('.lokr_w2'),
            'd_b': _turned('.lokr_w2_a'),
            'd_a': _turned('.lokr_w2_b'),
        },
        (
            _RANK,
            _ALPHA,
            Field('decompose_both', 'decompose_both'),
            Field('decompose_factor', 'factor'),
        ),
        {**_NO_PATTERNS, **_NO_DROPOUT, 'rank_dropout_scale': False},
        optional=frozenset({'c', 'c_a', 'c_b', 'd', 'd_a', 'd_b'}),
    ),
    'HIRA': Format(
        'hira',
        {'a': _turned('.hira_A'), 'b': _turned('.hira_B')},
        (_RANK, Field('hira_dropout', 'dropout')),
        {'rank_pattern': {}},
    ),
    'HRA': Format(
        'hra',
        {'u': Tensor('.hra_u')},
        (_RANK, Field('apply_GS', 'gram_schmidt')),
        {'bias': 'none'},
    ),
    'C3A': Format(
        'c3a',
        {'kernel': Tensor('.c3a_kernel')},
        (Field('block_size', 'block_size'),),
        {'bias': 'none', 'block_size_pattern': {}},
    ),
    'GRALORA': Format(
        'gralora',
        {
            'a': Tensor('.gralora_A'),
            'b': Tensor('.gralora_B'),
            'hybrid_a': _turned('.gralora_A_general.weight'),
            'hybrid_b': _turned('.gralora_B_general.weight'),
        },
        (
            _RANK,
            _ALPHA,
            Field('gralora_k', 'blocks'),
            Field('hybrid_r', 'hybrid_rank'),
            Field('gralora_dropout', 'dropout'),
        ),
        _NO_BIAS,
        optional=frozenset({'hybrid_a', 'hybrid_b'}),
    ),
    'OFT': Format(
        'oft',
        {'q': Tensor('.oft_R.weight')},
        (Field('oft_block_size', 'block_size'), Field('block_share', 'block_share')),
        {**_NO_BIAS, 'module_dropout': 0.0, 'r': 0},
        # Its series is that of the transposed rotation.
        negated=lambda config: config['use_cayley_neumann'],
        load_more=_load_oft,
        save_more=_save_oft,
    ),
    'BOFT': Format(
        'boft',
        {'q': Tensor('.boft_R'), 's': _column('.boft_s')},
        (),
        {**_NO_BIAS, 'boft_dropout': 0.0},
        load_more=_load_boft,
        save_more=_save_boft,
    ),
    'VERA': Format(
        'vera',
        {'b': Tensor('.vera_lambda_b'), 'd': Tensor('.vera_lambda_d')},
        (_RANK, Field('d_initial', 'd_initial'), Field('vera_dropout', 'dropout')),
        {**_NO_BIAS, 'save_projection': True},
        drawn=Drawn('projections', _projections, _saved_projections),
    ),
    'FOURIERFT': Format(
        'fourierft',
        {'spectrum': Tensor('.fourierft_spectrum')},
        (
            Field('n_frequency', 'n_frequency'),
            Field('scaling', 'scaling'),
            Field('random_loc_seed', 'seed'),
        ),
        {**_NO_BIAS, 'n_frequency_pattern': {}},
        load_more=lambda config, arrays: {'draws': 'torch'},
        save_more=_save_fourierft,
    ),
    'SHIRA': Format(
        'shira',
        {'values': Tensor('.shira_weight')},
        (_RANK,),
        drawn=Drawn('positions', _places('shira_indices'), _saved_places),
    ),
    'MISS': Format(
        'miss',
        {'d': Tensor('.miss_block')},
        (_RANK,),
        {'bias': 'none', 'miss_dropout': 0.0},
        load_more=_load_miss,
        save_more=_save_miss,
    ),
    'ROAD': Format(
        'road',
        {'theta': Tensor('.road_theta'), 'alpha': Tensor('.road_alpha')},
        (
            Field(
                'variant',
                'variant',
                lambda value: int(str(value).removeprefix('road_')),
                lambda value: f'road_{value}',
            ),
            Field('group_size', 'group_size'),
        ),
    ),
    'DELORA': Format(
        'delora',
        {
            'a': _turned('.delora_A'),
            'b': _turned('.delora_B'),
            'strength': Tensor(
                '.delora_lambda', lambda value: value[0], lambda value: value.reshape(1)
            ),
        },
        (_RANK, Field('delora_lambda', 'strength'), Field('module_dropout', 'dropout')),
        {'bias': 'none', 'rank_pattern': {}, 'lambda_pattern': {}},
    ),
}

METHODS = {
    method.__name__: method
    for method in (
        boft,
        c3a,
        delora,
        fourierft,
        gralora,
        hira,
        hra,
        loha,
        lokr,
        miss,
        oft,
        road,
        shira,
        vera,
    )
}
