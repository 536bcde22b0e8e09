"""Arguments by the names that other libraries have for them, or without names."""

from typing import Any

import jax.numpy as jnp
import pytest

import peftjax
from tests.algebra import assert_raises


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
