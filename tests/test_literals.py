"""No array of a method is a literal of its programs: what does not train is an argument.

A literal is compiled into the program, once for each copy, and again for every new seed or scale.
"""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import peftjax
from tests.method_costs import COSTS

SIDE, MOST = 2048, 64 * 1024
_LITERAL = re.compile(r'dense<["\[][^>]*>\s*:\s*tensor<([0-9x]*)x\w+>')


class _Four(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name in ('up', 'down', 'third', 'fourth'):
            x = jnp.tanh(nn.Dense(SIDE, name=name)(x))
        return x


X = jax.ShapeDtypeStruct((2, 8, SIDE), jnp.float32)


@functools.cache
def large():
    params = jax.eval_shape(_Four().init, jax.random.key(0), X)
    return peftjax.wrap(_Four(), params, {'x': X}, roles=peftjax.Roles(other=('x',)))


def _literals(text):
    """How many numbers stand in each array that is written out in a program."""
    return [math.prod(map(int, shape.split('x'))) for shape in _LITERAL.findall(text)]


def test_a_literal_is_seen():
    array = jnp.arange(30.0).reshape(5, 6) ** 2
    assert 30 in _literals(jax.jit(lambda x: x + array).lower(array).as_text())


# Whose settings hold places or subspaces of the small model that the costs are counted on.
OF_ANOTHER_MODEL = {'fish_mask', 'psoft'}


@pytest.mark.parametrize('name', sorted(set(COSTS) - OF_ANOTHER_MODEL))
def test_no_array_of_a_step_is_a_literal(name):
    tx = COSTS[name].make()
    adapter, frozen = jax.eval_shape(tx.init, jax.random.key(0), large())
    predict = peftjax.adapt(large(), tx)
    step = jax.grad(lambda adapter, frozen, x: (predict(adapter, frozen, x=x) ** 2).sum())
    text = jax.jit(step).lower(adapter, frozen, X).as_text()
    assert 4 * max(_literals(text), default=0) <= MOST


def test_positions_and_subspaces_are_no_literals():
    side = 64
    module = nn.Dense(side, name='dense')
    x = jnp.ones((2, side))
    model = peftjax.wrap(module, module.init(jax.random.key(0), x), x)
    for tx in (
        peftjax.fish_mask({'kernel': list(range(0, side * side, 2))}),
        peftjax.psoft(peftjax.principal_subspaces(model, rank=8, targets='.*')),
    ):
        predict = peftjax.adapt(model, tx)
        text = jax.jit(predict).lower(*tx.init(jax.random.key(0), model), x).as_text()
        assert max(_literals(text), default=0) < side
