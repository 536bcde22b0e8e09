"""Which runs may share a program: what a key leaves out is data, and what it holds is not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from tests.contract_models import IDS, MODELS
from tests.rows import METHODS

KEY = jax.random.key(0)
model = MODELS['linen scanned']


def test_what_zeros_would_change_is_another_program():
    def keys(make):
        return {peftjax.train.program_key(make(size)) for size in (2, 4)}

    assert len(keys(lambda size: peftjax.vera(rank=size, targets=r'layers.*/up'))) == 2
    assert len(keys(lambda size: peftjax.oft(block_size=size, targets=r'layers.*/up'))) == 2
    core = r'layers.*core'
    assert len(keys(lambda n: peftjax.prefix_tuning(num_virtual_tokens=n, targets=core))) == 2
    # Other targets are another program; another rate of dropout is not, be it 0.
    lora = peftjax.lora
    assert len(keys(lambda n: lora(rank=2, dropout=0.1 * (n - 2), targets=r'layers.*/up'))) == 1
    assert (
        len(keys(lambda n: lora(rank=2, targets=(r'layers.*/up',) * (n // 4) + (r'embed',)))) == 2
    )


def _floats_of(transform):
    """`(function, arguments, name)` of each argument of the methods that is a real number."""
    about = transform.about
    if about is None:
        return
    for value in about.arguments.values():
        parts = value if isinstance(value, tuple) else (value,)
        for part in parts:
            if isinstance(part, peftjax.PeftTransform):
                yield from _floats_of(part)
    for name in sorted(about.floats):
        if isinstance(about.arguments[name], float | int):
            yield getattr(peftjax, about.name), about.arguments, name


def _by_name(transforms):
    found = (each for transform in transforms for each in _floats_of(transform))
    return {(made.__name__, name): (made, arguments, name) for made, arguments, name in found}


# A row that needs a model is left to a test: models are not built to collect the tests.
FLOATS = _by_name(row.make(row.targets) for row in METHODS.values() if not row.of_model)


def _check_that_programs_are_the_same(make, arguments, name):
    programs = []
    for factor in (0.7, 0.9):
        changed = {**arguments, name: factor * (arguments[name] or 0.5)}
        transform = make(**changed)
        adapter, frozen = jax.eval_shape(transform.init, KEY, model())
        predict = peftjax.adapt(model(), transform)

        def call(adapter, frozen, key, predict=predict):
            return predict(adapter, frozen, ids=IDS, adapter_key=key)

        programs.append(str(jax.make_jaxpr(call)(adapter, frozen, KEY)))
    assert programs[0] == programs[1]


@pytest.mark.sampled
@pytest.mark.parametrize('case', sorted(FLOATS), ids='-'.join)
def test_no_real_number_of_a_method_is_in_its_program(case):
    """What `program_key` leaves out is data: the programs of two such numbers are the same."""
    _check_that_programs_are_the_same(*FLOATS[case])


def test_no_real_number_of_a_method_that_reads_the_model_is_in_its_program():
    of_model = (row.maker(model())(row.targets) for row in METHODS.values() if row.of_model)
    floats = _by_name(of_model)
    assert floats
    for case in floats.values():
        _check_that_programs_are_the_same(*case)


def test_a_callback_that_closes_over_a_number_is_not_taken_for_another():
    """Two transforms of functions share no program, whatever their texts say."""

    def scaled(by):
        def merge(leaves, matrix):
            factor = jax.pure_callback(
                lambda: np.float32(by), jax.ShapeDtypeStruct((), jnp.float32)
            )
            return matrix * (1 + factor * leaves['s'])[None]

        return peftjax.weightwise(
            lambda key, matrix, site: {'s': jnp.zeros(matrix.shape[1])},
            merge,
            targets=r'layers.*/up',
            name='scaled',
        )

    assert len({peftjax.train.program_key(scaled(by)) for by in (1.0, 2.0)}) == 2


def test_arrays_that_stand_in_a_program_are_in_its_key():
    arrays: list[Any] = [np.array([0, 1]), np.array([1, 2])]
    prompts = [
        peftjax.prompt_tuning(num_virtual_tokens=2, targets='embed', places=each) for each in arrays
    ]
    assert len(set(map(peftjax.train.program_key, prompts))) == 2
    # A unit that is padded with zeros must stay at zero behind the activation.
    moves = peftjax.bottleneck(size=2, activation=jax.nn.sigmoid, targets='up')
    assert moves.about is not None and moves.about.padded_by is None
