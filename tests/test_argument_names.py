"""Arguments by the names that other libraries have for them, or without names."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import peftjax
from peftjax import testing
from tests.algebra import assert_raises
from tests.contract_models import MODELS
from tests.rows import METHODS


@pytest.mark.parametrize(
    ('name', 'arguments', 'said'),
    [
        ('lora', {'r': 8, 'targets': 'a'}, ['lora: write rank=... in place of r=...']),
        (
            'lora',
            {'r': 8, 'lora_alpha': 16, 'lora_dropout': 0.1, 'target_modules': ['q']},
            ['rank=...', 'alpha=... in place of lora_alpha', 'dropout=...', 'targets=... in place'],
        ),
        ('adalora', {'r': 8, 'targets': 'a'}, ['init_rank=... in place of r=...']),
        ('ia3', {'target_modules': 'a'}, ['targets=... in place of target_modules=...']),
        ('ia3', {'targets': 'a', 'r': 8}, ["'feedforward'", 'and no r=...']),
        (
            'lora',
            {'rank': 2, 'targets': 'a', 'modules_to_save': ['classifier']},
            ['peftjax.chain(lora(...), peftjax.select(...))', 'in place of modules_to_save=...'],
        ),
        ('dora', {'rank': 2, 'exclude_modules': 'a'}, ['peftjax.targets(..., exclude=...)']),
        ('lora', {'rank': 2, 'targets': 'a', 'use_dora': True}, ['peftjax.dora(...)']),
        (
            'lora',
            {'rank': 2, 'targets': 'a', 'target': 'b'},
            ["keyword argument 'target'; lora takes rank, targets, alpha"],
        ),
    ],
)
def test_names_of_arguments_elsewhere(name, arguments, said):
    assert_raises(TypeError, lambda: getattr(peftjax, name)(**arguments), *said)


def test_arguments_without_names():
    untyped: Any = peftjax
    for act, said in (
        (lambda: untyped.lora(8, 'a'), 'write lora(rank=..., targets=...)'),
        (lambda: untyped.full(jnp.float32), 'write full(dtype=...)'),
        (lambda: untyped.fish_mask({'w': [0]}, 1), 'takes 1 positional arguments, found 2'),
    ):
        assert_raises(TypeError, act, said)


# A row that needs a model is left to a test: models are not built to collect the tests.
WITH_NUMBERS = {
    name: about
    for name, row in METHODS.items()
    if not row.of_model and not row.variant and (about := row.make(row.targets).about)
    if about.floats
}
OUT_OF_RANGE = [1e300, -1e39, 1e-60, float('inf'), float('nan')]


def _check_refused(about, number):
    for argument in about.floats:
        said = re.escape(f'{about.name}: {argument} is {number}; write a number with an absolute')
        with pytest.raises(ValueError, match=said):
            getattr(peftjax, about.name)(**{**about.arguments, argument: number})


@pytest.mark.parametrize('name', WITH_NUMBERS)
@pytest.mark.parametrize('number', OUT_OF_RANGE)
def test_a_number_that_float32_does_not_hold_is_refused(name, number):
    _check_refused(WITH_NUMBERS[name], number)


def test_a_number_of_a_method_that_reads_the_model_is_refused_too():
    model = MODELS['linen looped']()
    rows = [row for row in METHODS.values() if row.of_model and not row.variant]
    abouts = [about for row in rows if (about := row.maker(model)(row.targets).about)]
    assert any(about.floats for about in abouts)
    for about in abouts:
        for number in OUT_OF_RANGE:
            _check_refused(about, number)


def test_a_number_of_a_pattern_is_looked_at_too():
    with pytest.raises(ValueError, match='lora: alpha_pattern is inf; write a number with'):
        peftjax.lora(rank=2, targets='hidden', alpha_pattern={r'hidden': float('inf')})


def test_numbers_that_a_method_computes_are_looked_at_too():
    with pytest.raises(ValueError, match="scale of 'hidden/kernel' is 6e-39; choose arguments"):
        peftjax.lora(rank=2, alpha=1.2e-38, targets='hidden').init(
            jax.random.key(0), testing.tiny_mlp()
        )
    with pytest.raises(ValueError, match='alpha is an integer of 16610 bits; write a number'):
        peftjax.lora(rank=2, alpha=10**5000, targets='hidden')
