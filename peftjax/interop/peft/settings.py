"""Settings for which one field of peft's config is not one argument of ours.

`load_*` makes arguments from a config and the arrays of one matrix; `save_*` makes fields.
"""

from collections.abc import Mapping
from typing import Any

from peftjax.interop.peft.format import Array


def save_fourierft(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if arguments['positions'] is not None or arguments['draws'] != 'torch':
        raise ValueError(
            'a file of peft holds the seed of the places and not the places: make fourierft with '
            "draws='torch' and no positions"
        )
    return {}


def load_miss(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    del arrays
    kind, mini = config['init_weights'], config['mini_r']
    return {'bat': kind == 'bat', 'mini_rank': mini if kind == 'mini' else None}


def save_miss(arguments: Mapping[str, Any]) -> dict[str, Any]:
    mini = arguments['mini_rank']
    kind = 'bat' if arguments['bat'] else True if mini is None else 'mini'
    return {'init_weights': kind, 'mini_r': 1 if mini is None else mini}


def load_oft(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    del arrays
    eps, terms = config['eps'], config['num_cayley_neumann_terms']
    return {
        'eps': eps if config['coft'] else None,
        'neumann_terms': terms if config['use_cayley_neumann'] else None,
    }


def save_oft(arguments: Mapping[str, Any]) -> dict[str, Any]:
    eps, terms = arguments['eps'], arguments['neumann_terms']
    return {
        'coft': eps is not None,
        'eps': 6e-5 if eps is None else eps,
        'use_cayley_neumann': terms is not None,
        'num_cayley_neumann_terms': 5 if terms is None else terms,
    }


def load_boft(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    # Without its extension the library used one factor, whatever the config says: see `boft`.
    for name in ('boft_block_size', 'boft_block_num', 'boft_n_butterfly_factor'):
        config.get(name)
    factors, _, size, _ = arrays['q'].shape
    return {'block_size': size, 'factors': factors, 'whole_blocks': True, 'scale': True}


def save_boft(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if not (arguments['whole_blocks'] and arguments['scale']):
        raise ValueError('peft has BOFT with whole_blocks=True and scale=True only')
    return {
        'boft_block_size': arguments['block_size'],
        'boft_block_num': 0,
        'boft_n_butterfly_factor': arguments['factors'],
    }
