"""A weight is followed through views of it to its uses, or refused with a reason."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

import peftjax
from tests.algebra import KEY, assert_close, function, moved


@st.composite
def layouts(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    roles = [draw(st.sampled_from(('stack', 'rows', 'columns'))) for _ in shape]
    stack, rows, columns = (
        tuple(draw(st.permutations([i for i, r in enumerate(roles) if r == role])))
        for role in ('stack', 'rows', 'columns')
    )
    return peftjax.Layout(shape, stack=stack, rows=rows, columns=columns)


@given(layouts())
@settings(max_examples=30)
def test_layout_forms_are_inverse(layout):
    leaf = jnp.arange(float(math.prod(layout.shape))).reshape(layout.shape)
    matrix = layout.to_matrix(leaf)
    assert matrix.shape == (*layout.stack_shape, layout.inputs, layout.outputs)
    np.testing.assert_array_equal(layout.from_matrix(matrix), leaf)
    np.testing.assert_array_equal(layout.to_matrix(layout.from_matrix(matrix)), matrix)


@st.composite
def programs(draw):
    """A leaf's shape, operations on it, and the roles of the axes that come out.

    An operation is a name and its argument; the shape is carried along to know what is possible.
    """
    shape = tuple(draw(st.lists(st.sampled_from((1, 2, 3, 4, 6)), min_size=2, max_size=3)))
    value, operations = np.zeros(shape), []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(('transpose', 'reshape', 'squeeze', 'expand', 'cast')))
        if name == 'transpose':
            argument = tuple(draw(st.permutations(range(value.ndim))))
        elif name == 'reshape':
            argument = draw(shapes_of(value.size))
        elif name == 'expand':
            argument = draw(st.integers(0, value.ndim))
        else:
            argument = None
        operations.append((name, argument))
        value = OPERATIONS[name](value, argument)
    roles = [draw(st.sampled_from(('contract', 'free', 'batch'))) for _ in value.shape]
    assume(value.ndim <= 5 and 'contract' in roles)
    return shape, tuple(operations), tuple(roles)


@st.composite
def shapes_of(draw, size):
    """A shape of that many entries; often one that does not respect the axes there are."""
    shape = []
    while size > 1 and len(shape) < 3:
        divisors = [d for d in range(2, size + 1) if size % d == 0]
        shape.append(draw(st.sampled_from(divisors)))
        size //= shape[-1]
    return (*shape, size)


OPERATIONS = {
    'transpose': lambda w, order: w.transpose(order),
    'reshape': lambda w, shape: w.reshape(shape),
    'squeeze': lambda w, _: w.squeeze(),
    'expand': lambda w, axis: w[(slice(None),) * axis + (None,)],
    'cast': lambda w, _: w.astype(jnp.bfloat16).astype(jnp.float32),
}


def contracted(operations, roles):
    """`f(params, x)`: the leaf after the operations, multiplied with `x` by the axes' roles."""

    def f(params, x):
        w = params['w']
        for name, argument in operations:
            w = OPERATIONS[name](w, argument)
        batch = tuple(i for i, role in enumerate(roles) if role == 'batch')
        contract = tuple(i for i, role in enumerate(roles) if role == 'contract')
        mine = tuple(range(len(batch) + len(contract)))
        numbers = ((mine[len(batch) :], contract), (mine[: len(batch)], batch))
        return lax.dot_general(x, w, numbers)

    return f


def operand(shape, operations, roles):
    value = np.zeros(shape)
    for name, argument in operations:
        value = OPERATIONS[name](value, argument)
    sizes = [
        size
        for wanted in ('batch', 'contract')
        for size, role in zip(value.shape, roles, strict=True)
        if role == wanted
    ]
    return jax.random.normal(KEY, (*sizes, 2))


@given(programs())
@settings(max_examples=15)
def test_a_leaf_is_followed_through_views_or_refused(program):
    shape, operations, roles = program
    x = operand(*program)
    model = function(contracted(operations, roles), x, w=jax.random.normal(KEY, shape))
    site, tx = model.sites.weights['w'], peftjax.lora(rank=1, targets='w')
    if site.layout is None:
        assert site.reason
        with pytest.raises(peftjax.TargetError, match=re.escape(site.reason)):
            tx.init(KEY, model)
        return
    assert math.prod(site.layout.stack_shape) * site.layout.inputs * site.layout.outputs == (
        math.prod(shape)
    )
    adapter, frozen = moved(tx, model)
    merged = model.apply(tx.merge(adapter, frozen), x)
    tolerance = 2e-2 if ('cast', None) in operations else 1e-5
    assert_close(peftjax.adapt(model, tx)(adapter, frozen, x), merged, tolerance)


@pytest.mark.parametrize('shape', [(6, 2), (3, 4)])
def test_a_reshape_across_axes_ends(shape):
    """(4, 3) to (6, 2) once looped for ever; its like must be refused."""
    x = jnp.ones((5, shape[0]))
    model = function(lambda p, x: x @ p['w'].reshape(shape), x, w=jnp.ones((4, 3)))
    site = model.sites.weights['w']
    assert site.layout is None and 'across its axes' in site.reason


def test_an_axis_taken_apart_and_put_together_otherwise():
    w = jax.random.normal(KEY, (12, 2))
    model = function(lambda p, x: x @ p['w'].reshape(4, 3, 2).reshape(6, 4), jnp.ones((5, 6)), w=w)
    assert model.sites.weights['w'].layout is None  # One axis, half row and half column.
    model = function(
        lambda p, x: x @ p['w'].reshape(4, 3, 2).reshape(12, 2), jnp.ones((5, 12)), w=w
    )
    layout = model.sites.weights['w'].layout
    assert layout is not None and layout.rows == (0,)


def test_one_token_of_a_table_of_matrices():
    """A lookup of one token and `w[i]` of a stack are one operation to JAX."""
    ids = jnp.array([[1, 2, 3]])
    table = jax.random.normal(KEY, (7, 2, 3))
    model = function(lambda p, ids: jnp.take(p['table'], ids, axis=0), ids, table=table)
    tx = peftjax.lora(rank=2, targets='table')
    adapter, frozen = moved(tx, model)
    predict = peftjax.adapt(model, tx)
    many, one, scalar = (predict(adapter, frozen, each) for each in (ids, ids[:, :1], ids[0, 0]))
    assert_close(one, many[:, :1])
    assert_close(scalar, many[0, 0])
    assert_close(many, tx.merge(adapter, frozen)['table'][ids])
