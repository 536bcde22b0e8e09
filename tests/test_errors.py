"""Bad input to the core: each mistake raises, and says where, what it found, what to write."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import peftjax
from tests.algebra import KEY, X, assert_close, assert_raises, function, mlp, moved

LORA = peftjax.lora(rank=2, targets=r'hidden')


def lora(**changes):
    return peftjax.lora(**{'rank': 2, 'targets': r'hidden', **changes})


# --- targets ------------------------------------------------------------------------------------

BAD_TARGETS = {
    'a name that is not there': (
        lora(targets=r'.*/hiden'),
        ("'.*/hiden'", 'matches no weight matrix', "'hidden/kernel'", 'print(model.sites)'),
    ),
    'one of two': (lora(targets=(r'hidden', r'uot')), ("'uot'", "'out'")),
    'part of a path': (lora(targets=r'kernel'), ("'kernel'", "'hidden/kernel'", 'whole path')),
    'not a regex': (lora(targets=r'*/query'), ("'*/query'", 'not a regular expression', '.*/(q')),
    'none at all': (lora(targets=()), ('targets is empty', '.*/(query|value)')),
    'not text': (lora(targets=None), ('None', 'regular expression or a tuple', '.*/(query|value)')),
    'numbers': (lora(targets=(3,)), ('(3,)', 'regular expression or a tuple')),
    'only vectors': (
        lora(targets=r'.*/bias'),
        ('hidden/bias (8,)', 'enters add', "peftjax.select(r'.*/bias') trains whole"),
    ),
    'a last part': (lora(targets=r'kernel'), ("write ['kernel'] or r'.*/kernel'",)),
    'no such leaf': (peftjax.select(r'bias'), ("'bias'", "'hidden/bias'", 'no parameter leaf')),
    'no such module': (
        peftjax.bottleneck(size=2, targets=r'hidde'),
        ("'hidde'", 'no module', "'hidden'", 'print(model.sites)'),
    ),
    'a rank for no target': (
        lora(rank_pattern={'out': 1}),
        ("rank_pattern or alpha_pattern 'out' matches none of the targets", "'hidden/kernel'"),
    ),
}


@pytest.mark.parametrize('case', BAD_TARGETS)
def test_targets(case):
    transform, said = BAD_TARGETS[case]
    assert_raises(peftjax.TargetError, lambda: transform.init(KEY, mlp()), *said)
    assert_raises(peftjax.TargetError, lambda: peftjax.summary(transform, mlp()), *said)


def test_partition_target():
    tree = {'dense': {'kernel': 1, 'bias': 2}}
    assert_raises(
        peftjax.TargetError, lambda: peftjax.partition(tree, r'bias'), "'bias'", "'dense/bias'"
    )


# --- settings -----------------------------------------------------------------------------------

BAD_SETTINGS = {
    'rank 0': (lambda: lora(rank=0), ('rank', 'at least 1', 'got 0')),
    'rank by pattern 0': (lambda: lora(rank_pattern={'hidden': 0}), ('at least 1', 'got 0')),
    'half a rank': (lambda: lora(rank=2.5), ('whole number', 'got 2.5')),
    'dropout 1': (lambda: lora(dropout=1.0), ('dropout', '[0, 1)', 'got 1.0')),
    'dropout below 0': (lambda: lora(dropout=-0.1), ('dropout', '[0, 1)', 'got -0.1')),
    'a pattern that is no regex': (lambda: lora(alpha_pattern={'(': 2}), ("'('", 'regular expr')),
    'bottleneck of 0': (lambda: peftjax.bottleneck(size=0, targets='a'), ('size', 'got 0')),
}


@pytest.mark.parametrize('case', BAD_SETTINGS)
def test_settings(case):
    make, said = BAD_SETTINGS[case]
    assert_raises(ValueError, make, *said)


def test_a_rate_of_dropout_that_is_none_is_refused_before_init():
    for method, settings in (
        (peftjax.gralora, {'rank': 2, 'targets': 'a'}),
        (peftjax.vera, {'rank': 2, 'targets': 'a'}),
        (peftjax.randlora, {'rank': 2, 'targets': 'a'}),
        (peftjax.vblora, {'rank': 2, 'num_vectors': 8, 'vector_length': 2, 'targets': 'a'}),
        (peftjax.psoft, {'subspaces': {'a': (jnp.ones((4, 2)), jnp.ones((2, 8)))}}),
    ):
        make = functools.partial(method, **settings)
        assert_raises(ValueError, lambda make=make: make(dropout=1.0), 'dropout', '[0, 1)')


def test_rank_above_the_kernel():
    wide = lora(rank=5, init='pissa')  # What starts from a decomposition has a bound.
    said = ('rank 5', "'hidden/kernel'", '[4, 8]', '(4, 8) float32', 'rank=4', 'rank_pattern')
    assert_raises(ValueError, lambda: wide.init(KEY, mlp()), *said)
    assert_raises(ValueError, lambda: jax.eval_shape(wide.init, KEY, mlp()), *said)
    lora(rank=5, init='pissa', rank_pattern={'hidden': 4}).init(KEY, mlp())
    lora(rank=5).init(KEY, mlp())


def test_init_on_abstract_params():
    abstract = mlp().replace(params=jax.eval_shape(lambda: mlp().params))
    said = ("'hidden/kernel'", 'ShapeDtypeStruct', 'jax.eval_shape(tx.init, key, model)')
    assert_raises(TypeError, lambda: LORA.init(KEY, abstract), *said)


# --- arguments that are swapped -----------------------------------------------------------------

# What a type checker refuses, and a notebook does not.
_ANY: Any = peftjax
_ANY_LORA: Any = LORA


@pytest.mark.parametrize(
    ('act', 'said'),
    [
        (lambda: _ANY_LORA.init(mlp(), KEY), ('swapped', 'tx.init(key, model)')),
        (lambda: _ANY_LORA.init(0, mlp()), ('tx.init(jax.random.key(0), model)',)),
        (lambda: _ANY_LORA.init(KEY, mlp().params), ('dict', 'peftjax.wrap')),
        (lambda: _ANY.adapt(LORA, mlp()), ('swapped', 'peftjax.adapt(model, tx)')),
        (lambda: _ANY.adapt(mlp(), [LORA]), ('list', 'peftjax.adapt(model, tx)')),
        (lambda: _ANY.summary(mlp(), LORA), ('swapped', 'peftjax.summary(tx, model)')),
        (lambda: _ANY.summary(LORA, mlp().params), ('dict', 'peftjax.wrap')),
        (lambda: _ANY.chain([LORA, LORA]), ('a list', 'chain(first, second)')),
        (lambda: _ANY.chain((LORA,)), ('a tuple', 'chain(first, second)')),
        (lambda: _ANY.chain(LORA, mlp()), ('argument 1', 'Model', 'not a transform')),
        (lambda: _ANY.chain(_ANY.lora), ('function', 'not a transform', 'peftjax.lora(...)')),
        (lambda: _ANY.named_chain([LORA]), ('dict', 'list', 'chain(first, second)')),
        (lambda: _ANY.named_chain({'a': 3}), ('int', 'not a transform')),
    ],
)
def test_swapped_arguments_say_what_to_write(act, said):
    assert_raises(TypeError, act, *said)


def test_what_is_no_frozen_says_what_to_write():
    adapter, frozen = LORA.init(KEY, mlp())
    predict = peftjax.adapt(mlp(), LORA)
    line = ('adapter, frozen = tx.init(key, model)', 'tx.freeze(model, adapter)')
    for given, said in (
        (mlp().params, ('a tree of parameters', *line)),
        (mlp(), ('the model', *line)),
        (adapter, ('entries of lora', *line)),
        (X, ('an array', *line)),
        ((adapter, frozen), ('a tuple', *line)),
    ):
        for act in (
            lambda given=given: predict(adapter, given, X),
            lambda given=given: _ANY_LORA.merge(adapter, given),
        ):
            assert_raises(TypeError, act, *said)
    for act in (lambda: predict(frozen, adapter, X), lambda: LORA.merge(frozen, adapter)):
        assert_raises(TypeError, act, 'swapped', 'the adapter comes first')


# --- leaves and calls that cannot be followed -----------------------------------------------------


def normalised(p, x):
    return (x @ (p['w'] / jnp.linalg.norm(p['w']))) @ p['v']


@functools.cache
def refused():
    return function(normalised, X, w=jax.random.normal(KEY, (4, 6)), v=jnp.ones((6, 3)))


def test_a_refused_leaf():
    site = refused().sites.weights['w']
    assert site.layout is None and site.reason in str(refused().sites)
    said = ("'w'", '(4, 6) float32', site.reason, 'materialize=True')
    assert_raises(peftjax.TargetError, lambda: lora(targets='w').init(KEY, refused()), *said)


def test_a_refused_leaf_materialised():
    tx = lora(targets='.', materialize=True)
    adapter, frozen = moved(tx, refused(), size=1.0)
    merged = refused().apply(tx.merge(adapter, frozen), X)
    assert_close(peftjax.adapt(refused(), tx)(adapter, frozen, X), merged)
    assert not jnp.allclose(refused().apply(refused().params, X), merged, atol=1e-2)


def test_a_call_that_contracts_another_axis():
    def either(p, x, turned):
        return x @ (p['w'].T if turned else p['w'])

    model = peftjax.wrap(either, {'w': jnp.ones((4, 4))}, {'x': X, 'turned': False})
    tx = lora(targets='w')
    adapter, frozen = tx.init(KEY, model)
    predict = peftjax.adapt(model, tx)
    assert predict(adapter, frozen, x=X, turned=True).shape == (2, 4)  # The tied use.

    def stacked(p, x, batched):
        return jnp.einsum('eb,eio->ebo' if batched else 'eb,ebo->eo', x, p['w'])

    model = peftjax.wrap(stacked, {'w': jnp.ones((4, 2, 2))}, {'x': X.T, 'batched': False})
    adapter, frozen = tx.init(KEY, model)
    said = ("'w'", '(4, 2, 2)', 'example inputs', 'Leave it out')
    assert_raises(
        peftjax.AdapterError,
        lambda: peftjax.adapt(model, tx)(adapter, frozen, x=X.T, batched=True),
        *said,
    )


def test_a_call_that_cannot_be_followed():
    def sometimes(p, x, normalise):
        return normalised({**p, 'v': jnp.eye(6)}, x) if normalise else x @ p['w']

    model = peftjax.wrap(sometimes, {'w': jnp.ones((4, 6))}, {'x': X, 'normalise': False})
    tx = lora(targets='w')
    said = ("'w'", '(4, 6)', 'Leave it out of the targets', 'example inputs')
    assert_raises(
        peftjax.AdapterError,
        lambda: peftjax.adapt(model, tx)(*tx.init(KEY, model), x=X, normalise=True),
        *said,
    )


def test_a_static_argument_that_is_not_hashable():
    said = ("['names']", 'set', 'hashable', 'tuple')
    assert_raises(
        TypeError,
        lambda: peftjax.adapt(mlp(), LORA)(*LORA.init(KEY, mlp()), X, names={'a'}),
        *said,
    )


# --- models -------------------------------------------------------------------------------------


def test_wrapping_what_is_no_model():
    for thing in (3, 'bert', None, {'w': 1}):
        said = (type(thing).__name__, 'flax.linen.Module', 'flax.nnx.Module', 'f(params, *args)')
        assert_raises(TypeError, lambda t=thing: peftjax.wrap(t, {}, X), *said)


def test_wrapping_what_is_swapped_or_missing():
    dense, linear = nn.Dense(3), nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    variables = dense.init(KEY, X)
    for act, *said in (
        (lambda: peftjax.wrap(dense, X, variables), 'wrap(linen_module, variables, inputs)'),
        (lambda: peftjax.wrap(dense, None, X), 'NoneType', 'wrap(linen_module, variables, inputs)'),
        (lambda: peftjax.wrap(linear, X), 'example_inputs', 'wrap(nnx_module, None, inputs)'),
        (lambda: peftjax.wrap(nn.Dense, None, X), 'the class Dense', 'wrap(Dense(...), ...)'),
        (lambda: peftjax.wrap(nnx.Linear, None, X), 'the class Linear', 'an instance'),
    ):
        assert_raises(TypeError, act, *said)


def test_wrapping_nnx_with_params():
    linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    said = ('NNX', 'wrap(module, None, inputs)', 'model.replace(params=')
    assert_raises(TypeError, lambda: peftjax.wrap(linear, {'kernel': 1}, X), *said)


def test_a_rule_that_changes_a_shape():
    shrink = peftjax.weightwise(
        init_weight=lambda key, matrix, site: {'s': jnp.ones(())},
        merge_weight=lambda leaves, matrix: matrix[:-1] * leaves['s'],
        targets=r'hidden',
        name='shrink',
    )
    said = ('(3, 8)', '(4, 8)', 'keep the shape')
    assert_raises(ValueError, lambda: shrink.merge(*shrink.init(KEY, mlp())), *said)
