"""Bad input to the core: each mistake raises, and says where, what it found, what to write."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import peftjax

KEY = jax.random.key(0)
X = jnp.ones((2, 4))
MLP = peftjax.testing.tiny_mlp()
LORA = peftjax.lora(rank=2, targets=r'hidden')
BIASES = peftjax.select(r'.*/bias')
BOTTLENECK = peftjax.bottleneck(size=2, targets=r'hidden')


def lora(**changes):
    return peftjax.lora(**{'rank': 2, 'targets': r'hidden', **changes})


def assert_raises(kind: type[Exception], act: Callable[[], object], *said: str):
    """`act` raises `kind`, and its message holds every one of `said`."""
    with pytest.raises(kind) as caught:
        act()
    missing = [words for words in said if words not in str(caught.value)]
    assert not missing, f'{missing} is not in: {caught.value}'


def function(f, *shapes, **params):
    """`f(params, *arrays)` wrapped, with float arrays of the given shapes as example."""
    return peftjax.wrap(f, params, tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))


def at_call(transform, adapter, model=MLP, params=None, x=X):
    """The adapted model called with an adapter that may not be its own."""
    given = model.params if params is None else params
    return peftjax.adapt(model, transform)(adapter, given, x)


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
    'only vectors': (lora(targets=r'.*/bias'), ('hidden/bias (8,)', 'enters add', 'select(')),
    'no such leaf': (peftjax.select(r'bias'), ("'bias'", "'hidden/bias'", 'no parameter leaf')),
    'no such module': (
        peftjax.bottleneck(size=2, targets=r'hidde'),
        ("'hidde'", 'no module', "'hidden'", 'print(model.sites)'),
    ),
    'a rank for no weight': (
        lora(rank_pattern={'outt': 1}),
        ("rank_pattern or alpha_pattern 'outt'", "'out/kernel'"),
    ),
}


@pytest.mark.parametrize('case', BAD_TARGETS)
def test_targets(case):
    transform, said = BAD_TARGETS[case]
    assert_raises(peftjax.TargetError, lambda: transform.init(KEY, MLP), *said)
    assert_raises(peftjax.TargetError, lambda: peftjax.summary(transform, MLP), *said)


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


def test_rank_above_the_kernel():
    wide = lora(rank=5)
    said = ('rank 5', "'hidden/kernel'", '[4, 8]', '(4, 8) float32', 'rank=4', 'rank_pattern')
    assert_raises(ValueError, lambda: wide.init(KEY, MLP), *said)
    assert_raises(ValueError, lambda: jax.eval_shape(wide.init, KEY, MLP), *said)
    lora(rank=5, rank_pattern={'hidden': 4}).init(KEY, MLP)


def test_init_on_abstract_params():
    abstract = MLP.replace(params=jax.eval_shape(lambda: MLP.params))
    said = ("'hidden/kernel'", 'ShapeDtypeStruct', 'jax.eval_shape(tx.init, key, model)')
    assert_raises(TypeError, lambda: LORA.init(KEY, abstract), *said)


# --- adapters of another model or method ----------------------------------------------------------


class Other(nn.Module):
    hidden: str = 'hidden'
    width: int = 8

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name='out')(nn.Dense(self.width, name=self.hidden)(x))


def other_mlp(**fields):
    module = Other(**fields)
    return peftjax.wrap(module, module.init(KEY, X), X)


@pytest.mark.parametrize('transform', [LORA, BIASES], ids=['lora', 'select'])
def test_a_leaf_that_is_not_there(transform):
    adapter = transform.init(KEY, MLP)
    other = other_mlp(hidden='hiddem')
    near = "near names: ['hiddem/" + ('kernel' if transform is LORA else 'bias')
    said = ("'hidden/", near, 'another model')
    assert_raises(peftjax.AdapterError, lambda: transform.merge(other.params, adapter), *said)
    assert_raises(peftjax.AdapterError, lambda: at_call(transform, adapter, other), *said)


@pytest.mark.parametrize('transform', [LORA, BIASES], ids=['lora', 'select'])
def test_a_leaf_of_another_shape(transform):
    adapter = transform.init(KEY, MLP)
    other = other_mlp(width=6)
    path, mine, theirs = (
        ("'hidden/kernel'", '(4, 8)', '(4, 6)')
        if transform is LORA
        else ("'hidden/bias'", '(8,)', '(6,)')
    )
    said = (path, mine, theirs, 'float32', 'another model')
    assert_raises(peftjax.AdapterError, lambda: transform.merge(other.params, adapter), *said)
    assert_raises(peftjax.AdapterError, lambda: at_call(transform, adapter, other), *said)


def test_a_leaf_of_the_same_shape_that_is_used_otherwise():
    rows = function(lambda p, x: x @ p['w'], (2, 4), w=jnp.ones((4, 4)))
    columns = function(lambda p, x: x @ p['w'].T, (2, 4), w=jnp.ones((4, 4)))
    tx = peftjax.lora(rank=2, targets='w')
    adapter = tx.init(KEY, rows)
    said = ("'w'", 'rows=(0,)', 'rows=(1,)', 'another model')
    assert_raises(peftjax.AdapterError, lambda: at_call(tx, adapter, columns), *said)


def test_a_module_that_is_not_there():
    other = other_mlp(hidden='hiddem')
    adapter = BOTTLENECK.init(KEY, MLP)
    said = ("'hidden'", "'hiddem'", 'another model')
    assert_raises(peftjax.AdapterError, lambda: at_call(BOTTLENECK, adapter, other), *said)


def test_a_module_of_another_width():
    other = other_mlp(width=6)
    adapter = BOTTLENECK.init(KEY, MLP)
    said = ("'hidden'", '(8, 2) float32', '(2, 6) float32', 'another model')
    assert_raises(peftjax.AdapterError, lambda: at_call(BOTTLENECK, adapter, other), *said)


METHODS = {
    'lora': (LORA, 'WeightAdapter'),
    'select': (BIASES, 'array'),
    'bottleneck': (BOTTLENECK, "'down'"),
    'chain': (peftjax.chain(LORA, BIASES), 'tuple'),
    'named chain': (peftjax.named_chain({'low': LORA, 'bias': BIASES}), "['bias', 'low']"),
}


@pytest.mark.parametrize('foreign', METHODS)
@pytest.mark.parametrize('method', METHODS)
def test_an_adapter_of_another_method(method, foreign):
    if method == foreign:
        return
    transform, expected = METHODS[method]
    adapter = METHODS[foreign][0].init(KEY, MLP)
    for act in (
        lambda: transform.merge(MLP.params, adapter),
        lambda: at_call(transform, adapter),
    ):
        assert_raises(peftjax.AdapterError, act, expected, 'found', 'init')


def test_an_adapter_that_lost_its_type():
    adapter = {path: dict(entry) for path, entry in LORA.init(KEY, MLP).items()}
    said = ("found a dict at 'hidden/kernel'", 'WeightAdapter')
    assert_raises(peftjax.AdapterError, lambda: LORA.merge(MLP.params, adapter), *said)


# --- composition --------------------------------------------------------------------------------


def test_chain_with_a_part_missing():
    tx = peftjax.chain(LORA, BIASES)
    adapter = tx.init(KEY, MLP)
    for parts in (adapter[:1], (*adapter, adapter[0])):
        said = ('2 transforms', f'{len(parts)} parts')
        assert_raises(peftjax.AdapterError, lambda p=parts: tx.merge(MLP.params, p), *said)
        assert_raises(peftjax.AdapterError, lambda p=parts: at_call(tx, p), *said)


def test_named_chain_with_a_part_missing():
    tx = peftjax.named_chain({'low': LORA, 'bias': BIASES})
    adapter = tx.init(KEY, MLP)
    for parts, found in (
        ({'low': adapter['low']}, "['low']"),
        ({**adapter, 'more': {}}, "['bias', 'low', 'more']"),
    ):
        said = ("['bias', 'low']", found)
        assert_raises(peftjax.AdapterError, lambda p=parts: tx.merge(MLP.params, p), *said)
        assert_raises(peftjax.AdapterError, lambda p=parts: at_call(tx, p), *said)


@pytest.mark.parametrize('last', [peftjax.full(), peftjax.select(r'hidden/kernel')])
def test_replacing_what_is_already_adapted(last):
    tx = peftjax.chain(LORA, last)
    said = ("'hidden/kernel'", 'lose the adaptation', 'put select or full', 'first in the chain')
    assert_raises(ValueError, lambda: tx.init(KEY, MLP), *said)
    peftjax.chain(last, LORA).init(KEY, MLP)


def test_merging_what_lives_on_activations():
    for tx in (BOTTLENECK, peftjax.chain(LORA, BOTTLENECK)):
        adapter = tx.init(KEY, MLP)
        said = ("'hidden'", 'cannot merge', 'adapt(model, tx)')
        assert_raises(peftjax.MergeError, lambda t=tx, a=adapter: t.merge(MLP.params, a), *said)


def test_partition_overlap():
    biases, rest = peftjax.partition(MLP.params, r'.*/bias')
    assert_raises(
        ValueError, lambda: peftjax.combine(biases, MLP.params), "'hidden/bias'", 'partition'
    )
    assert_raises(ValueError, lambda: peftjax.combine(biases, {'hidden': rest['hidden']}), 'out')


# --- leaves and calls that cannot be followed -----------------------------------------------------


def normalised(p, x):
    return (x @ (p['w'] / jnp.linalg.norm(p['w']))) @ p['v']


REFUSED = function(normalised, (2, 4), w=jax.random.normal(KEY, (4, 6)), v=jnp.ones((6, 3)))


def test_a_refused_leaf():
    site = REFUSED.sites.weights['w']
    assert site.layout is None and site.reason in str(REFUSED.sites)
    said = ("'w'", '(4, 6) float32', site.reason, 'materialize=True')
    assert_raises(peftjax.TargetError, lambda: lora(targets='w').init(KEY, REFUSED), *said)


def test_a_refused_leaf_materialised():
    tx = lora(targets='.', materialize=True)
    adapter = peftjax.testing.perturb(tx.init(KEY, REFUSED), seed=0, size=1.0)
    merged = REFUSED.apply(tx.merge(REFUSED.params, adapter), X)
    assert jnp.allclose(at_call(tx, adapter, REFUSED), merged, atol=1e-5, rtol=1e-5)
    assert not jnp.allclose(REFUSED.apply(REFUSED.params, X), merged, atol=1e-2)


def test_a_call_that_contracts_another_axis():
    def either(p, x, turned):
        return x @ (p['w'].T if turned else p['w'])

    model = peftjax.wrap(either, {'w': jnp.ones((4, 4))}, {'x': X, 'turned': False})
    tx = lora(targets='w')
    adapter = tx.init(KEY, model)
    predict = peftjax.adapt(model, tx)
    assert predict(adapter, model.params, x=X, turned=True).shape == (2, 4)  # The tied use.

    def stacked(p, x, batched):
        return jnp.einsum('eb,eio->ebo' if batched else 'eb,ebo->eo', x, p['w'])

    model = peftjax.wrap(stacked, {'w': jnp.ones((4, 2, 2))}, {'x': X.T, 'batched': False})
    adapter = tx.init(KEY, model)
    said = ("'w'", '(4, 2, 2)', 'example inputs', 'Leave it out')
    assert_raises(
        peftjax.AdapterError,
        lambda: peftjax.adapt(model, tx)(adapter, model.params, x=X.T, batched=True),
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
        lambda: peftjax.adapt(model, tx)(tx.init(KEY, model), model.params, x=X, normalise=True),
        *said,
    )


def test_a_static_argument_that_is_not_hashable():
    said = ("['names']", 'set', 'hashable', 'tuple')
    assert_raises(
        TypeError,
        lambda: peftjax.adapt(MLP, LORA)(LORA.init(KEY, MLP), MLP.params, X, names={'a'}),
        *said,
    )


# --- models -------------------------------------------------------------------------------------


def test_wrapping_what_is_no_model():
    for thing in (3, 'bert', None, {'w': 1}):
        said = (type(thing).__name__, 'flax.linen.Module', 'flax.nnx.Module', 'f(params, *args)')
        assert_raises(TypeError, lambda t=thing: peftjax.wrap(t, {}, X), *said)


def test_wrapping_nnx_with_params():
    linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    said = ('NNX', 'wrap(module, None, inputs)', 'model.replace(params=')
    assert_raises(TypeError, lambda: peftjax.wrap(linear, {'kernel': 1}, X), *said)


def test_a_rule_that_changes_a_shape():
    shrink = peftjax.weightwise(
        init_weight=lambda key, matrix, site: {'s': jnp.ones(())},
        merge_weight=lambda leaves, matrix, path: matrix[:-1] * leaves['s'],
        targets=r'hidden',
    )
    said = ('(3, 8)', '(4, 8)', 'keep the shape')
    adapter = shrink.init(KEY, MLP)
    assert_raises(ValueError, lambda: shrink.merge(MLP.params, adapter), *said)
