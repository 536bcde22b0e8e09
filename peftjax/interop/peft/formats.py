"""Weight methods as Hugging Face's peft keeps them: tensors beside ours, fields beside arguments.

Its matrices are [out, in] and ours [in, out], so that most arrays come transposed.
"""

import numpy as np

from peftjax.interop.peft import settings
from peftjax.interop.peft.drawn import PLACES, PROJECTIONS
from peftjax.interop.peft.format import Field, Format, Tensor
from peftjax.methods.low_rank.delora import delora
from peftjax.methods.low_rank.gralora import gralora
from peftjax.methods.low_rank.hira import hira
from peftjax.methods.low_rank.loha import loha
from peftjax.methods.low_rank.miss import miss
from peftjax.methods.low_rank.vera import vera
from peftjax.methods.orthogonal.boft import boft
from peftjax.methods.orthogonal.hra import hra
from peftjax.methods.orthogonal.oft import oft
from peftjax.methods.orthogonal.road import road
from peftjax.methods.sparse.shira import shira
from peftjax.methods.structured.c3a import c3a
from peftjax.methods.structured.fourierft import fourierft
from peftjax.methods.structured.lokr import lokr


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
        conv1d=True,
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
        conv1d=True,
    ),
    'OFT': Format(
        'oft',
        {'q': Tensor('.oft_R.weight')},
        (Field('oft_block_size', 'block_size'), Field('block_share', 'block_share')),
        {**_NO_BIAS, 'module_dropout': 0.0, 'r': 0},
        # The library's series is that of the transposed rotation.
        negated=lambda config: config['use_cayley_neumann'],
        load_more=settings.load_oft,
        save_more=settings.save_oft,
    ),
    'BOFT': Format(
        'boft',
        {'q': Tensor('.boft_R'), 's': _column('.boft_s')},
        (),
        {**_NO_BIAS, 'boft_dropout': 0.0},
        load_more=settings.load_boft,
        save_more=settings.save_boft,
    ),
    'VERA': Format(
        'vera',
        {'b': Tensor('.vera_lambda_b'), 'd': Tensor('.vera_lambda_d')},
        (_RANK, Field('d_initial', 'd_initial'), Field('vera_dropout', 'dropout')),
        {**_NO_BIAS, 'save_projection': True},
        drawn=PROJECTIONS,
        conv1d=True,
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
        save_more=settings.save_fourierft,
        conv1d=True,
    ),
    'SHIRA': Format(
        'shira',
        {'values': Tensor('.shira_weight')},
        (_RANK,),
        drawn=PLACES,
    ),
    'MISS': Format(
        'miss',
        {'d': Tensor('.miss_block')},
        (_RANK,),
        {'bias': 'none', 'miss_dropout': 0.0},
        load_more=settings.load_miss,
        save_more=settings.save_miss,
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
        biased='alpha',
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
        lengths='.delora_w_norm',
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
