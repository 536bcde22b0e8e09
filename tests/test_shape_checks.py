"""The shapes in signatures are checked in the tests, and are those of the arrays."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Float, TypeCheckError

import peftjax
from peftjax.core.rules import MatrixRule
from peftjax.methods.orthogonal.rotations import turn
from peftjax.quantize.int8 import Int8
from tests import shape_checks
from tests.shape_checks import PACKAGES, checked

LEAVES = {'a': jnp.ones((4, 2)), 'b': jnp.ones((2, 8))}


def _merged(leaves, matrix):
    """What LoRA makes of one matrix `[4, 8]`."""
    tx = peftjax.lora(rank=2, targets=r'hidden')
    adapter, frozen = tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())
    rule = tx.rules(adapter, frozen.own)['hidden/kernel']
    assert isinstance(rule, MatrixRule) and rule.merge is not None
    return rule.merge({**frozen.own['hidden/kernel'], **leaves}, matrix)


def test_a_matrix_and_its_leaves_pass():
    assert _merged(LEAVES, jnp.ones((4, 8))).shape == (4, 8)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), LEAVES)
    assert _merged(low, jnp.ones((4, 8), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    'leaves, matrix',
    [
        # Every one of these but the last two would be spread over the other array without a word.
        (LEAVES, jnp.ones((4, 1))),
        (LEAVES, jnp.ones((8,))),
        ({**LEAVES, 'a': jnp.ones((1, 2))}, jnp.ones((4, 8))),
        ({**LEAVES, 'b': jnp.ones((2, 1))}, jnp.ones((4, 8))),
        (LEAVES, jnp.ones((4, 8), jnp.int32)),
        ({**LEAVES, 'b': jnp.ones((3, 8))}, jnp.ones((4, 8))),
        ({'a': LEAVES['a']}, jnp.ones((4, 8))),
    ],
)
def test_a_wrong_shape_in_a_function_of_one_weight_raises(leaves, matrix):
    with pytest.raises(TypeCheckError, match='merge'):
        _merged(leaves, matrix)


def test_it_is_checked_under_transformations_too():
    with pytest.raises(TypeCheckError, match='merge'):
        jax.eval_shape(_merged, LEAVES, jax.ShapeDtypeStruct((4, 1), jnp.float32))
    with pytest.raises(TypeCheckError, match='merge'):
        jax.jit(jax.vmap(_merged, (None, 0)))(LEAVES, jnp.ones((3, 1, 8)))


def test_a_wrong_shape_in_a_helper_raises():
    with pytest.raises(TypeCheckError, match='rotations'):
        turn(jnp.ones((5, 6)), jnp.ones((2, 3, 4)))
    with pytest.raises(TypeCheckError, match='matrix'):
        Int8().pack(jnp.ones((2, 3, 4)))


def test_every_module_of_the_checked_packages_is_checked():
    modules = [name for name in sys.modules if name.startswith(tuple(PACKAGES))]
    assert {'peftjax.core.layout', 'peftjax.methods.low_rank.lora', 'peftjax.quantize.nf4'} <= set(
        modules
    )
    plain = [
        name for name in modules if 'jaxtyping' not in type(sys.modules[name].__loader__).__module__
    ]
    assert not plain


def test_every_package_whose_signatures_state_shapes_is_checked():
    root = Path(peftjax.__file__).parent
    stating = {
        '.'.join(('peftjax', path.relative_to(root).parts[0]))
        for path in root.rglob('*.py')
        if 'from jaxtyping import' in path.read_text(encoding='utf-8')
    }
    assert stating == set(PACKAGES)


def test_functions_of_one_name_keep_their_own_defaults():
    def needs(a: Float[jax.Array, ' n'], b: int):
        del a, b

    def may(a: Float[jax.Array, ' n'], b: int = 1):
        del a, b

    may.__qualname__ = needs.__qualname__
    checked(needs)
    checked(may)(jnp.ones(3))
    with pytest.raises(TypeError, match="'b'"):
        checked(needs)(jnp.ones(3))


def test_functions_without_shapes_are_left_alone():
    def of_a_name(name: str, count: int) -> str:
        return name * count

    def of_an_array(x: Float[jax.Array, ' n']):
        return x

    def in_quotes(x: "Float[jax.Array, ' n']"):
        return x

    decorated = shape_checks._where_shapes_are(lambda **_: lambda each: ('checked', each))
    for function in (of_an_array, in_quotes, dict, property(in_quotes)):
        assert decorated(typechecker=None)(function) == ('checked', function)
    assert decorated(typechecker=None)(of_a_name) is of_a_name
