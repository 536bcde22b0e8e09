"""Properties of the core: layouts, trees, views, composition, noise, and its values."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax import lax

import peftjax
from peftjax.core import paths

KEY = jax.random.key(0)
X = jnp.arange(8.0).reshape(2, 4) / 8
MLP = peftjax.testing.tiny_mlp()

settings.register_profile(
    'peftjax',
    deadline=None,  # Compiling takes as long as it takes.
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile('peftjax')


def moved(transform, model, seed=0):
    """An adapter in which nothing is zero."""
    return peftjax.testing.perturb(transform.init(KEY, model), seed, 0.5)


def function(f, *inputs, **params):
    return peftjax.wrap(f, params, inputs)


def scale(targets=r'hidden'):
    """A method that does not commute with LoRA: columns times `1 + s`."""
    return peftjax.weightwise(
        init_weight=lambda key, matrix, site: {'s': jnp.zeros(matrix.shape[1])},
        merge_weight=lambda leaves, matrix, path: matrix * (1 + leaves['s']),
        targets=targets,
    )


def assert_close(mine, theirs, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        size = max(float(jnp.abs(b).max(initial=0.0)), 1e-6)
        assert float(jnp.abs(a - b).max(initial=0.0)) <= tolerance * size


# --- layouts ------------------------------------------------------------------------------------


@st.composite
def layouts(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    roles = [draw(st.sampled_from(('stack', 'rows', 'columns'))) for _ in shape]
    axes = {
        role: tuple(draw(st.permutations([i for i, r in enumerate(roles) if r == role])))
        for role in ('stack', 'rows', 'columns')
    }
    return peftjax.Layout(shape, **axes)


@given(layouts())
@settings(max_examples=30)
def test_layout_forms_are_inverse(layout):
    leaf = np.arange(math.prod(layout.shape)).reshape(layout.shape)
    matrix = layout.to_matrix(leaf)
    assert matrix.shape == (*layout.stack_shape, layout.inputs, layout.outputs)
    np.testing.assert_array_equal(layout.from_matrix(matrix), leaf)
    np.testing.assert_array_equal(layout.to_matrix(layout.from_matrix(matrix)), matrix)


# --- trees --------------------------------------------------------------------------------------

names = st.text('abc', min_size=1, max_size=3)
trees = st.recursive(
    st.integers(),
    lambda inner: st.one_of(
        st.dictionaries(names, inner, max_size=3),
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=8,
)


@given(trees, st.data())
@settings(max_examples=60)
def test_partition_and_combine_are_inverse(tree, data):
    leaves = paths.flatten(tree)
    assume(leaves)
    chosen = data.draw(st.sets(st.sampled_from(sorted(leaves)), min_size=1))
    matching, rest = peftjax.partition(tree, tuple(re.escape(path) for path in chosen))
    assert paths.flatten(matching) == {path: leaves[path] for path in leaves if path in chosen}
    assert paths.flatten(rest) == {path: leaves[path] for path in leaves if path not in chosen}
    assert peftjax.combine(matching, rest) == peftjax.combine(rest, matching) == tree


def test_partition_passes_through_transformations():
    biases, rest = peftjax.partition(MLP.params, r'.*/bias')

    @jax.jit
    def gradient(biases, rest):
        loss = lambda biases: MLP.apply(peftjax.combine(biases, rest), X).sum()  # noqa: E731
        return jax.grad(loss)(biases)

    assert sorted(paths.flatten(gradient(biases, rest))) == ['hidden/bias', 'out/bias']


# --- views --------------------------------------------------------------------------------------


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
@settings(max_examples=30)
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
    adapter = moved(tx, model)
    merged = model.apply(tx.merge(model.params, adapter), x)
    tolerance = 2e-2 if ('cast', None) in operations else 1e-5
    assert_close(peftjax.adapt(model, tx)(adapter, model.params, x), merged, tolerance)


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
    assert model.sites.weights['w'].layout.rows == (0,)


def test_one_token_of_a_table_of_matrices():
    """A lookup of one token and `w[i]` of a stack are one operation to JAX."""
    ids = jnp.array([[1, 2, 3]])
    table = jax.random.normal(KEY, (7, 2, 3))
    model = function(lambda p, ids: jnp.take(p['table'], ids, axis=0), ids, table=table)
    tx = peftjax.lora(rank=2, targets='table')
    adapter = moved(tx, model)
    predict = peftjax.adapt(model, tx)
    many, one = (predict(adapter, model.params, each) for each in (ids, ids[:, :1]))
    assert_close(one, many[:, :1])
    assert_close(many, tx.merge(model.params, adapter)['table'][ids])


# --- composition --------------------------------------------------------------------------------


def test_chain_is_associative():
    a, b, c = peftjax.lora(rank=2, targets=r'hidden'), scale(), peftjax.lora(rank=1, targets=r'.*')
    x, y, z = (moved(tx, MLP, seed) for seed, tx in enumerate((a, b, c)))
    forms = [
        (peftjax.chain(a, b, c), (x, y, z)),
        (peftjax.chain(a, peftjax.chain(b, c)), (x, (y, z))),
        (peftjax.chain(peftjax.chain(a, b), c), ((x, y), z)),
        (peftjax.named_chain({'z': a, 'm': b, 'a': c}), {'z': x, 'm': y, 'a': z}),
    ]
    merged = c.merge(b.merge(a.merge(MLP.params, x), y), z)
    for tx, adapter in forms:
        assert_close(tx.merge(MLP.params, adapter), merged, 0)
        assert_close(peftjax.adapt(MLP, tx)(adapter, MLP.params, X), jax.jit(MLP.apply)(merged, X))


def test_order_of_a_chain_matters():
    a, b = peftjax.lora(rank=2, targets=r'hidden'), scale()
    x, y = moved(a, MLP), moved(b, MLP)
    one = peftjax.adapt(MLP, peftjax.chain(a, b))((x, y), MLP.params, X)
    other = peftjax.adapt(MLP, peftjax.chain(b, a))((y, x), MLP.params, X)
    assert float(jnp.abs(one - other).max()) > 1e-2


def test_a_chain_on_a_replaced_leaf():
    """What `select` trains is the base of what comes after it."""
    tx = peftjax.chain(peftjax.full(), peftjax.lora(rank=2, targets=r'hidden'), scale(r'.*'))
    adapter = moved(tx, MLP)
    merged = jax.jit(MLP.apply)(tx.merge(MLP.params, adapter), X)
    assert_close(peftjax.adapt(MLP, tx)(adapter, MLP.params, X), merged)


def test_an_empty_chain_is_the_model():
    tx = peftjax.chain()
    assert tx.init(KEY, MLP) == ()
    assert_close(tx.merge(MLP.params, ()), MLP.params, 0)
    assert_close(peftjax.adapt(MLP, tx)((), MLP.params, X), jax.jit(MLP.apply)(MLP.params, X))


def test_init_does_not_depend_on_the_order_of_targets():
    targets = (r'hidden', r'out/kernel')
    one = peftjax.lora(rank=2, targets=targets).init(KEY, MLP)
    other = peftjax.lora(rank=2, targets=targets[::-1]).init(KEY, MLP)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert_close(one, other, 0)
    assert_close(
        peftjax.lora(rank=2, targets=targets[0]).init(KEY, MLP)['hidden/kernel'],
        one['hidden/kernel'],
        0,
    )


def test_initial_values_are_those_of_the_path_for_ever():
    """A change of these numbers changes every published run."""
    folded = jax.random.key_data(paths.fold_in(jax.random.key(0, impl='threefry2x32'), 'layers/w'))
    assert folded.tolist() == [2359487743, 2505721472]


# --- noise --------------------------------------------------------------------------------------


def noisy(model, targets=r'.*', rate=0.5):
    """`predict(adapter_key)` of LoRA with dropout, whose arrays are ones."""
    tx = peftjax.lora(rank=1, targets=targets, dropout=rate)
    adapter = jax.tree.map(jnp.ones_like, tx.init(KEY, model))
    predict = peftjax.adapt(model, tx)
    return lambda x, key=None: predict(adapter, model.params, x, adapter_key=key)


def test_dropout_is_off_without_key_or_rate():
    assert_close(noisy(MLP, rate=0.0)(X, KEY), noisy(MLP)(X), 0)


def test_dropout_follows_its_key():
    predict = noisy(MLP)
    assert_close(predict(X, KEY), predict(X, KEY), 0)
    assert not jnp.allclose(predict(X, KEY), predict(X, jax.random.key(1)))
    assert not jnp.allclose(predict(X, KEY), predict(X))


def test_dropout_keeps_the_expectation():
    model = function(lambda p, x: x @ p['w'], X, w=jnp.ones((4, 3)))
    predict = noisy(model, rate=0.3)
    many = jax.vmap(functools.partial(predict, X))(jax.random.split(KEY, 4000))
    spread = many.std(0) / math.sqrt(len(many))
    assert (jnp.abs(many.mean(0) - predict(X)) < 5 * spread).all()


def scanned(p, x):
    return lax.scan(lambda x, w: (x, x @ w), x, p['w'])[1]


def looped(p, x):
    return jnp.stack([x @ p['w'][i] for i in range(len(p['w']))])


def batched(p, x):
    return jnp.einsum('lti,lio->lto', jnp.stack([x] * len(p['w'])), p['w'])


def vmapped(p, x):
    return jax.vmap(jnp.matmul)(jnp.stack([x] * len(p['w'])), p['w'])


@pytest.mark.parametrize('stack', [scanned, looped, batched, vmapped], ids=lambda f: f.__name__)
def test_each_layer_has_noise_of_its_own(stack):
    x = jnp.ones((2, 16))
    predict = noisy(function(stack, x, w=jnp.ones((3, 16, 5))))
    quiet, loud = predict(x), predict(x, KEY)
    assert jnp.ptp(quiet, axis=0).max() == 0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not jnp.allclose(loud[i], loud[j])


def test_each_use_has_noise_of_its_own():
    x = jnp.ones((2, 16))
    predict = noisy(function(lambda p, x: (x @ p['w'], x @ p['w']), x, w=jnp.ones((16, 5))))
    assert_close(*predict(x))
    assert not jnp.allclose(*predict(x, KEY))


def test_each_leaf_and_each_method_has_noise_of_its_own():
    x = jnp.ones((2, 16))
    model = function(
        lambda p, x: (x @ p['v'], x @ p['w']), x, v=jnp.ones((16, 5)), w=jnp.ones((16, 5))
    )
    assert_close(*noisy(model)(x))
    assert not jnp.allclose(*noisy(model)(x, KEY))
    tx = peftjax.lora(rank=1, targets='w', dropout=0.5)
    twice = peftjax.chain(tx, tx)
    adapter = jax.tree.map(jnp.ones_like, twice.init(KEY, model))
    call = functools.partial(peftjax.adapt(model, twice), params=model.params)
    added = call(adapter, x=x, adapter_key=KEY)[1] - model.apply(model.params, x)[1]
    # One mask for both would give even multiples of what one kept entry adds, 2.
    assert jnp.any(added % 4 != 0)


# --- values -------------------------------------------------------------------------------------


def test_weight_adapter_reads_like_a_dict():
    entry = peftjax.lora(rank=2, targets=r'hidden').init(KEY, MLP)['hidden/kernel']
    assert set(entry) == {'a', 'b'} and len(entry) == 2 and 'a' in entry
    assert {name: leaf.shape for name, leaf in entry.items()} == {'a': (4, 2), 'b': (2, 8)}
    assert entry.layout.shape == (4, 8) and 'WeightAdapter' in repr(entry)
    with pytest.raises(KeyError):
        entry['c']


def test_weight_adapter_is_a_pytree():
    adapter = peftjax.lora(rank=2, targets=r'hidden').init(KEY, MLP)
    assert list(paths.flatten(adapter)) == ['hidden/kernel/a', 'hidden/kernel/b']
    doubled = jax.tree.map(lambda leaf: 2 * leaf, adapter)
    again = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf / 2, tree))(doubled)
    assert_close(again, adapter, 0)
    many = jax.vmap(lambda size: jax.tree.map(lambda leaf: size * leaf, adapter))(jnp.arange(3.0))
    for tree in (doubled, again, many):
        assert isinstance(tree['hidden/kernel'], peftjax.WeightAdapter)
        assert tree['hidden/kernel'].layout == adapter['hidden/kernel'].layout
    assert many['hidden/kernel']['a'].shape == (3, 4, 2)


def test_model_is_a_pytree_of_its_params():
    traces = []

    @jax.jit
    def call(model, x):
        traces.append(1)
        return model.apply(model.params, x)

    expected = jax.jit(MLP.apply)(MLP.params, X)
    assert_close(call(MLP, X), expected)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, MLP)
    assert isinstance(doubled, peftjax.Model) and doubled.sites is MLP.sites
    assert not jnp.allclose(call(doubled, X), expected)
    assert len(traces) == 1
    assert list(paths.flatten(MLP)) == ['params/' + path for path in paths.flatten(MLP.params)]


def test_everything_runs_abstractly():
    abstract = jax.eval_shape(lambda: MLP)
    assert isinstance(abstract, peftjax.Model)
    tx = peftjax.chain(peftjax.full(), peftjax.lora(rank=2, targets=r'.*'))
    adapter = jax.eval_shape(tx.init, KEY, abstract)
    merged = jax.eval_shape(tx.merge, abstract.params, adapter)
    assert merged == jax.eval_shape(lambda: MLP.params)
    predict = peftjax.adapt(abstract, tx)
    assert jax.eval_shape(predict, adapter, abstract.params, X).shape == (2, 3)


def test_summary_counts_and_denominators():
    tx = peftjax.chain(peftjax.lora(rank=2, targets=r'hidden'), peftjax.select(r'.*/bias'))
    found = peftjax.summary(tx, MLP)
    low, biases, base = 2 * (4 + 8), 8 + 3, 4 * 8 + 8 + 8 * 3 + 3
    assert (found.trainable, found.added, found.base) == (low + biases, low, base)
    assert found.percent_of_base == pytest.approx(100 * (low + biases) / base)
    text = str(found)
    assert f'{found.percent_of_base:.4g} % of the base ({base:,})' in text
    share = 100 * found.trainable / (base + low)
    assert f'{share:.4g} % of base + added ({base + low:,})' in text
    assert [leaf[0] for leaf in found.leaves] == [
        '0/hidden/kernel/a',
        '0/hidden/kernel/b',
        '1/hidden/bias',
        '1/out/bias',
    ]


def test_summary_tells_a_base_leaf_from_an_added_one_of_its_name():
    """LoRA's own arrays are called `a` and `b`; so may be leaves of the base."""
    model = function(lambda p, x: x @ p['w'] + p['b'], X, w=jnp.ones((4, 3)), b=jnp.ones(3))
    tx = peftjax.chain(peftjax.lora(rank=2, targets='w'), peftjax.select('b'))
    found = peftjax.summary(tx, model)
    assert (found.trainable, found.added) == (2 * (4 + 3) + 3, 2 * (4 + 3))


def test_bfloat16_adapters_on_a_float32_base():
    tx = peftjax.lora(rank=2, targets=r'.*', dtype=jnp.bfloat16)
    adapter = moved(tx, MLP)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype(jnp.bfloat16)}
    merged = tx.merge(MLP.params, adapter)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.float32)}
    # Stored in bfloat16, computed in float32: the two routes agree as float32 does.
    adapted = peftjax.adapt(MLP, tx)(adapter, MLP.params, X)
    assert adapted.dtype == jnp.float32
    assert_close(adapted, jax.jit(MLP.apply)(merged, X))
