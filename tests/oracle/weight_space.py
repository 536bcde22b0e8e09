"""Weight-space methods as Hugging Face's peft writes them.

Its matrices are [out, in], ours [in, out], so that most arrays come transposed.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

import peftjax
from tests.oracle.cases import Case, Converted, Tensors
from tests.oracle.names import entry, kernel_of, modules_of, with_saved

Make = Callable[[Case, dict[str, str]], peftjax.PeftTransform]


def _plain(ending: str, arrays: Mapping[str, str], make: Make) -> Callable[[Case], Converted]:
    """A converter: `arrays` is our name -> the file's ending, `~` in front where it comes as is.

    make: `(case, {module: leaf}) -> transform`.
    """

    def convert_case(case: Case) -> Converted:
        modules = {name: kernel_of(case, name) for name in modules_of(case, ending)}

        def read(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
            found = {}
            for ours, theirs in arrays.items():
                key = name + theirs.removeprefix('~')
                # A gradient bears the name of the parameter inside, which a file leaves out.
                value = tensors.get(key, tensors.get(f'{key}.weight'))
                if value is not None:
                    found[ours] = value if theirs.startswith('~') else value.T
            return found

        def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
            return {leaf: entry(case, leaf, read(tensors, name)) for name, leaf in modules.items()}

        return with_saved(case, Converted(make(case, modules), convert))

    return convert_case


def _targets(modules: dict[str, str]) -> tuple[str, ...]:
    return tuple(modules.values())


_loha = _plain(
    '.hada_w1_a',
    {'b1': '.hada_w1_a', 'a1': '.hada_w1_b', 'b2': '.hada_w2_a', 'a2': '.hada_w2_b'},
    lambda case, modules: peftjax.loha(
        rank=case.config['r'], alpha=case.config['alpha'], targets=_targets(modules)
    ),
)
_hira = _plain(
    '.hira_A',
    {'a': '.hira_A', 'b': '.hira_B'},
    lambda case, modules: peftjax.hira(rank=case.config['r'], targets=_targets(modules)),
)
_hra = _plain(
    '.hra_u',
    {'u': '~.hra_u'},
    lambda case, modules: peftjax.hra(
        rank=case.config['r'], gram_schmidt=case.config['apply_GS'], targets=_targets(modules)
    ),
)


def _c3a(case: Case) -> Converted:
    converted = _plain(
        '.c3a_kernel',
        {'kernel': '~.c3a_kernel'},
        lambda case, modules: peftjax.c3a(
            block_size=case.config['block_size'], targets=_targets(modules)
        ),
    )(case)
    # Its backward pass transforms the kernel the wrong way round for the gradient of the input, so
    # that what lies below the last layer is off; ours is that of the merged weight.
    return dataclasses.replace(converted, wrong_gradients='layers_0')


_miss = _plain(
    '.miss_block',
    {'d': '~.miss_block'},
    lambda case, modules: peftjax.miss(
        rank=case.config['r'],
        mini_rank=case.config['mini_r'] if case.config['init_weights'] == 'mini' else None,
        bat=case.config['init_weights'] == 'bat',
        targets=_targets(modules),
    ),
)
_gralora = _plain(
    '.gralora_A',
    {
        'a': '~.gralora_A',
        'b': '~.gralora_B',
        'hybrid_a': '.gralora_A_general.weight',
        'hybrid_b': '.gralora_B_general.weight',
    },
    lambda case, modules: peftjax.gralora(
        rank=case.config['r'],
        blocks=case.config['gralora_k'],
        hybrid_rank=case.config['hybrid_r'],
        alpha=case.config['alpha'],
        targets=_targets(modules),
    ),
)
_LOKR = {
    'c': '.lokr_w1',
    'c_b': '.lokr_w1_a',
    'c_a': '.lokr_w1_b',
    'd': '.lokr_w2',
    'd_b': '.lokr_w2_a',
    'd_a': '.lokr_w2_b',
}


def _lokr(ending: str) -> Callable[[Case], Converted]:
    return _plain(
        ending,
        _LOKR,
        lambda case, modules: peftjax.lokr(
            rank=case.config['r'],
            alpha=case.config['alpha'],
            factor=case.config['decompose_factor'],
            decompose_both=case.config['decompose_both'],
            targets=_targets(modules),
        ),
    )


def _auxiliary(case: Case) -> dict[str, np.ndarray]:
    """What the library drew and did not save."""
    with np.load(case.folder / 'aux.npz') as file:
        return dict(file)


def _make_vera(case: Case, modules: dict[str, str]) -> peftjax.PeftTransform:
    saved = case.tensors if 'base_model.vera_A' in case.tensors else _auxiliary(case)
    a, b = (
        next(value for name, value in saved.items() if name.endswith(f'vera_{letter}'))
        for letter in 'AB'
    )
    return peftjax.vera(
        rank=case.config['r'],
        projections=(a.T, b.T),
        targets=_targets(modules),
    )


_vera = _plain('.vera_lambda_b', {'b': '~.vera_lambda_b', 'd': '~.vera_lambda_d'}, _make_vera)


def _positions(case: Case, modules: dict[str, str], ending: str) -> dict[str, np.ndarray]:
    """Places as `row * out + column` of our [in, out], from [out, in] pairs."""
    drawn = {**case.tensors, **_auxiliary(case)}
    places = {}
    for name, leaf in modules.items():
        outputs = case.model.sites.weights[leaf].layout.outputs
        column, row = drawn[name + ending]
        places[leaf] = (row * outputs + column).astype(np.int32)
    return places


_fourierft = _plain(
    '.fourierft_spectrum',
    {'spectrum': '~.fourierft_spectrum'},
    lambda case, modules: peftjax.fourierft(
        n_frequency=case.config['n_frequency'],
        scaling=case.config['scaling'],
        positions=_positions(case, modules, '.indices'),
        targets=_targets(modules),
    ),
)
_shira = _plain(
    '.shira_weight',
    {'values': '~.shira_weight'},
    lambda case, modules: peftjax.shira(
        rank=case.config['r'],
        positions=_positions(case, modules, '.shira_indices'),
        targets=_targets(modules),
    ),
)

CONVERTERS = {
    'loha': _loha,
    'lokr': _lokr('.lokr_w2_a'),
    'lokr_decompose_both': _lokr('.lokr_w2_a'),
    'hira': _hira,
    'hra': _hra,
    'hra_gs': _hra,
    'c3a': _c3a,
    'gralora': _gralora,
    'gralora_hybrid': _gralora,
    'miss': _miss,
    'miss_bat': _miss,
    'miss_mini': _miss,
    'vera': _vera,
    'vera_noproj': _vera,
    'fourierft': _fourierft,
    'shira': _shira,
}
