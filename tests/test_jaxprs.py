"""Traced programs: every primitive's parameters are read in one module, in names of our own."""

import ast
import configparser
import types
from pathlib import Path

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import peftjax
from peftjax.binding import jaxprs, operations

ROOT = Path(__file__).parents[1]
READER = ROOT / 'peftjax' / 'binding' / 'jaxprs.py'
OTHERS = [
    path
    for folder in ('peftjax', 'experiments', 'benchmarks', 'tests')
    for path in sorted((ROOT / folder).rglob('*.py'))
    if path not in (READER, Path(__file__))
]
# Names that only JAX's equations have: their parameters, and what binds them.
FOREIGN = {
    *('num_consts', 'num_carry', 'ft_in', 'call_jaxpr', 'fun_jaxpr', 'cond_jaxpr', 'body_jaxpr'),
    *('cond_nconsts', 'body_nconsts', 'dimension_numbers', 'broadcast_dimensions', 'slice_sizes'),
    *('start_indices', 'limit_indices', 'feature_group_count', 'batch_group_count', 'branches'),
}


def _reads(tree: ast.AST) -> list[int]:
    """Lines that take something off an equation."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == 'params':
            owner = ast.unparse(node.value).split('.')[-1].strip('_')
            found = owner in ('eqn', 'equation', 'e')
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            found = node.slice.value in FOREIGN
        else:
            found = isinstance(node, ast.Attribute) and node.attr in ('get_bind_params', 'eqns')
        if found:
            lines.append(getattr(node, 'lineno', 0))
    return lines


def test_one_module_reads_parameters_of_primitives():
    # The walks that only count equations go through the bodies that this module lists.
    walks = {
        'peftjax/binding/tags.py',
        'peftjax/plan/counting.py',
        'peftjax/testing/measures.py',
    }
    found = {}
    for path in OTHERS:
        lines = path.read_text().splitlines()
        reads = _reads(ast.parse('\n'.join(lines)))
        name = str(path.relative_to(ROOT))
        reads = [n for n in reads if not (name in walks and '.eqns' in lines[n - 1])]
        if reads:
            found[name] = reads
    assert not found
    assert len(_reads(ast.parse(READER.read_text()))) > 20  # the search finds what is there


def test_the_tested_range_holds_the_installed_release():
    newest = tuple(map(int, jaxprs.TESTED[1].split('.')))
    assert jax.__version_info__[:2] <= newest[:2], 'the tests pass: raise jaxprs.TESTED'


def test_the_tested_range_starts_at_the_declared_bound():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    bounds = config['options']['install_requires'].split()
    assert f'jax>={jaxprs.TESTED[0]}' in bounds


def _equations(function, *args):
    return {eqn.primitive.name: eqn for eqn in jax.make_jaxpr(function)(*args).jaxpr.eqns}


def _loop(w, x):
    def step(carry, row):
        return carry + row @ w, carry * w.sum()

    return lax.scan(step, jnp.zeros(2), x, reverse=True, unroll=2)


def test_scan():
    w, x = jnp.ones((3, 2)), jnp.ones((4, 3))
    operation = jaxprs.read(_equations(_loop, w, x)['scan'])
    assert isinstance(operation, operations.Scan)
    assert operation[1:] == (4, True, 2, 1, 1)
    consts, carry, slices = operation.split(['w', 'carry', 'x'])
    assert (consts, carry, slices) == (['w'], ['carry'], ['x'])
    assert len(operation.body.jaxpr.invars) == 3


def test_while_and_its_operands():
    def loop(limit, step):
        return lax.while_loop(lambda i: i < limit, lambda i: i + step, 0)

    operation = jaxprs.read(_equations(loop, 10, 2)['while'])
    assert isinstance(operation, operations.While)
    assert operation.split(['limit', 'step', 'i']) == (['limit'], ['step'], ['i'])


@pytest.mark.parametrize(
    ('function', 'kind', 'count'),
    [
        (lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), operations.Cond, 2),
        (jax.checkpoint(jnp.sin), operations.Remat, 1),
        (jax.jit(jnp.sin), operations.Call, 1),
        (jax.nn.silu, operations.Call, 1),
        (jax.custom_jvp(jnp.sin), operations.Derivative, 1),
        (jax.custom_vjp(jnp.sin), operations.Derivative, 1),
    ],
)
def test_bodies(function, kind, count):
    if isinstance(function, jax.custom_vjp):
        function.defvjp(lambda x: (jnp.sin(x), x), lambda x, d: (d,))
    if isinstance(function, jax.custom_jvp):
        function.defjvps(lambda d, *_: d)
    eqns = jax.make_jaxpr(function)(jnp.ones(2)).jaxpr.eqns
    eqn = next(eqn for eqn in eqns if isinstance(jaxprs.read(eqn), kind))
    found = jaxprs.bodies(jaxprs.read(eqn))
    assert len(found) == count
    assert [body.jaxpr for body in found] == jaxprs.programs_in(eqn)


def test_a_program_evaluates_to_what_it_computes_and_lets_values_go():
    x, alive, most = jnp.arange(6.0).reshape(2, 3), set(), 0

    def function(x):
        for _ in range(5):
            x = jnp.sin(x)
        return x, _loop(jnp.ones((3, 2)), x)

    closed = jax.make_jaxpr(function)(x)

    class Value:
        def __init__(self, array):
            self.array = array
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    def step(eqn, inputs):
        nonlocal most
        arrays = [each.array if isinstance(each, Value) else each for each in inputs]
        most = max(most, len(alive))
        return [Value(array) for array in jaxprs.bind(eqn, arrays)]

    found = jaxprs.evaluate(operations.Body(closed.jaxpr, closed.consts), [x], step)
    for mine, theirs in zip(found, jax.tree.leaves(function(x)), strict=True):
        np.testing.assert_array_equal(mine.array, theirs)
    assert most < len(closed.jaxpr.eqns)


@pytest.mark.parametrize('params', [{'body': None, 'trips': 4}, {'ft_in': (1, 2)}, {'ft_in': None}])
def test_another_jax_is_named(params):
    scan = _equations(_loop, jnp.ones((3, 2)), jnp.ones((4, 3)))['scan']
    renamed = types.SimpleNamespace(primitive=scan.primitive, params=params)
    with pytest.raises(peftjax.JaxVersionError) as caught:
        jaxprs.read(renamed)
    for said in (f'jax {jax.__version__}', "'scan'", str(sorted(params)), *jaxprs.TESTED):
        assert said in str(caught.value)


@pytest.mark.parametrize('unroll', [2, 4])
def test_unrolled_scans_compute_the_same(unroll):
    def nested(w, x):
        return jax.jit(lambda w, x: jax.checkpoint(_loop)(w, x))(w, x)

    args = jnp.ones((3, 2)), jnp.arange(12.0).reshape(4, 3)
    again, found = jaxprs.unrolled(jax.make_jaxpr(nested)(*args), 4, unroll)
    assert found == 1
    mine = jex.jaxpr_as_fun(again)(*args)
    jax.tree.map(np.testing.assert_allclose, mine, jax.tree.leaves(nested(*args)))
