"""Trees, composition, and the values that the core is made of."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import peftjax
from peftjax.core import paths
from tests.algebra import KEY, X, assert_close, function, mlp, moved

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
    matching, rest = peftjax.partition(tree, paths.exactly(chosen))
    assert paths.flatten(matching) == {path: leaves[path] for path in leaves if path in chosen}
    assert paths.flatten(rest) == {path: leaves[path] for path in leaves if path not in chosen}
    assert peftjax.combine(matching, rest) == peftjax.combine(rest, matching) == tree


def test_partition_passes_through_transformations():
    biases, rest = peftjax.partition(mlp().params, r'.*/bias')

    @jax.jit
    def gradient(biases, rest):
        loss = lambda biases: mlp().apply(peftjax.combine(biases, rest), X).sum()  # noqa: E731
        return jax.grad(loss)(biases)

    assert sorted(paths.flatten(gradient(biases, rest))) == ['hidden/bias', 'out/bias']


# --- composition --------------------------------------------------------------------------------


def scale(targets=r'hidden'):
    """A method that does not commute with LoRA: columns times `1 + s`."""
    return peftjax.weightwise(
        init_weight=lambda key, matrix, site: {'s': jnp.zeros(matrix.shape[1])},
        merge_weight=lambda leaves, matrix: matrix * (1 + leaves['s'])[None],
        targets=targets,
        name='scale',
    )


def test_chain_is_associative():
    a, b, c = peftjax.lora(rank=2, targets=r'hidden'), scale(), peftjax.lora(rank=1, targets=r'.*')
    x, y, z = (moved(tx, mlp(), seed)[0] for seed, tx in enumerate((a, b, c)))
    forms = [
        (peftjax.chain(a, b, c), (x, y, z)),
        (peftjax.chain(a, peftjax.chain(b, c)), (x, (y, z))),
        (peftjax.chain(peftjax.chain(a, b), c), ((x, y), z)),
        (peftjax.named_chain({'z': a, 'm': b, 'a': c}), {'z': x, 'm': y, 'a': z}),
    ]
    merged = mlp().params
    for tx, adapter in ((a, x), (b, y), (c, z)):
        merged = tx.merge(adapter, tx.freeze(mlp().replace(params=merged), adapter))
    for tx, adapter in forms:
        frozen = tx.freeze(mlp(), adapter)
        assert_close(tx.merge(adapter, frozen), merged, 0)
        assert_close(peftjax.adapt(mlp(), tx)(adapter, frozen, X), jax.jit(mlp().apply)(merged, X))


def test_order_of_a_chain_matters():
    a, b = peftjax.lora(rank=2, targets=r'hidden'), scale()
    x, y = moved(a, mlp())[0], moved(b, mlp())[0]
    first, second = peftjax.chain(a, b), peftjax.chain(b, a)
    one = peftjax.adapt(mlp(), first)((x, y), first.freeze(mlp(), (x, y)), X)
    other = peftjax.adapt(mlp(), second)((y, x), second.freeze(mlp(), (y, x)), X)
    assert float(jnp.abs(one - other).max()) > 1e-2


def test_a_chain_on_a_replaced_leaf():
    """What `select` trains is the base of what comes after it."""
    tx = peftjax.chain(peftjax.full(), peftjax.lora(rank=2, targets=r'hidden'), scale(r'.*'))
    adapter, frozen = moved(tx, mlp())
    merged = jax.jit(mlp().apply)(tx.merge(adapter, frozen), X)
    assert_close(peftjax.adapt(mlp(), tx)(adapter, frozen, X), merged)


def test_an_empty_chain_is_the_model():
    tx = peftjax.chain()
    adapter, frozen = tx.init(KEY, mlp())
    assert adapter == ()
    assert_close(tx.merge(adapter, frozen), mlp().params, 0)
    expected = jax.jit(mlp().apply)(mlp().params, X)
    assert_close(peftjax.adapt(mlp(), tx)(adapter, frozen, X), expected)


def test_init_does_not_depend_on_the_order_of_targets():
    targets = (r'hidden', r'out/kernel')
    one, turned, alone = (
        peftjax.lora(rank=2, targets=each).init(KEY, mlp())[0]
        for each in (targets, targets[::-1], targets[0])
    )
    assert jax.tree.structure(one) == jax.tree.structure(turned)
    assert_close(one, turned, 0)
    assert_close(alone['hidden/kernel'], one['hidden/kernel'], 0)


def test_initial_values_are_those_of_the_path_for_ever():
    """A change of these numbers changes every published run."""
    folded = jax.random.key_data(paths.fold_in(jax.random.key(0, impl='threefry2x32'), 'layers/w'))
    assert folded.tolist() == [2359487743, 2505721472]


# --- values -------------------------------------------------------------------------------------


def test_an_entry_reads_like_a_dict():
    entry = peftjax.lora(rank=2, targets=r'hidden').init(KEY, mlp())[0]['hidden/kernel']
    assert set(entry) == {'a', 'b'} and len(entry) == 2 and 'a' in entry
    assert {name: leaf.shape for name, leaf in entry.items()} == {'a': (4, 2), 'b': (2, 8)}
    assert entry.layout.shape == (4, 8) and repr(entry).startswith('lora(a (4, 2) ')
    with pytest.raises(KeyError):
        entry['c']


def test_an_entry_is_a_pytree():
    adapter = peftjax.lora(rank=2, targets=r'hidden').init(KEY, mlp())[0]
    assert list(paths.flatten(adapter)) == ['hidden/kernel/a', 'hidden/kernel/b']
    doubled = jax.tree.map(lambda leaf: 2 * leaf, adapter)
    again = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf / 2, tree))(doubled)
    assert_close(again, adapter, 0)
    many = jax.vmap(lambda size: jax.tree.map(lambda leaf: size * leaf, adapter))(jnp.arange(3.0))
    for tree in (doubled, again, many):
        entry, again = adapter['hidden/kernel'], tree['hidden/kernel']
        assert isinstance(again, peftjax.Entry)
        assert (again.method, again.layout) == (entry.method, entry.layout)
    assert many['hidden/kernel']['a'].shape == (3, 4, 2)


def test_model_is_a_pytree_of_its_params():
    traces = []

    @jax.jit
    def call(model, x):
        traces.append(1)
        return model.apply(model.params, x)

    expected = jax.jit(mlp().apply)(mlp().params, X)
    assert_close(call(mlp(), X), expected)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, mlp())
    assert isinstance(doubled, peftjax.Model) and doubled.sites is mlp().sites
    assert not jnp.allclose(call(doubled, X), expected)
    assert len(traces) == 1
    assert list(paths.flatten(mlp())) == ['params/' + path for path in paths.flatten(mlp().params)]


def test_everything_runs_abstractly():
    abstract = jax.eval_shape(lambda: mlp())
    assert isinstance(abstract, peftjax.Model)
    tx = peftjax.chain(peftjax.full(), peftjax.lora(rank=2, targets=r'.*'))
    adapter, frozen = jax.eval_shape(tx.init, KEY, abstract)
    merged = jax.eval_shape(tx.merge, adapter, frozen)
    assert merged == jax.eval_shape(lambda: mlp().params)
    predict = peftjax.adapt(abstract, tx)
    assert jax.eval_shape(predict, adapter, frozen, X).shape == (2, 3)


def test_summary_counts_and_denominators():
    tx = peftjax.chain(peftjax.lora(rank=2, targets=r'hidden'), peftjax.select(r'.*/bias'))
    found = peftjax.summary(tx, mlp())
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
    model = function(lambda p, x: x @ p['w'] + p['b'][None], X, w=jnp.ones((4, 3)), b=jnp.ones(3))
    tx = peftjax.chain(peftjax.lora(rank=2, targets='w'), peftjax.select('b'))
    found = peftjax.summary(tx, model)
    assert (found.trainable, found.added) == (2 * (4 + 3) + 3, 2 * (4 + 3))


def test_bfloat16_adapters_on_a_float32_base():
    tx = peftjax.lora(rank=2, targets=r'.*', dtype=jnp.bfloat16)
    adapter, frozen = moved(tx, mlp())
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype(jnp.bfloat16)}
    merged = tx.merge(adapter, frozen)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.float32)}
    # Stored in bfloat16, computed in float32: the two routes agree as float32 does.
    adapted = peftjax.adapt(mlp(), tx)(adapter, frozen, X)
    assert adapted.dtype == jnp.float32
    assert_close(adapted, jax.jit(mlp().apply)(merged, X))


@pytest.mark.parametrize(
    'method',
    [
        lambda: peftjax.loha(rank=2, targets='hidden'),
        lambda: peftjax.lokr(rank=1, factor=2, targets='hidden'),
        lambda: peftjax.hira(rank=2, targets='hidden'),
        lambda: peftjax.gralora(rank=2, blocks=2, targets='hidden'),
        lambda: peftjax.dora(rank=2, targets='hidden'),
        lambda: peftjax.randlora(rank=2, targets='hidden'),
        lambda: peftjax.psoft(
            subspaces=peftjax.principal_subspaces(mlp(), rank=2, targets='hidden')
        ),
    ],
    ids=['loha', 'lokr', 'hira', 'gralora', 'dora', 'randlora', 'psoft'],
)
def test_products_of_bfloat16_leaves_are_not_rounded_to_it(method):
    tx = method()
    adapter, frozen = moved(tx, mlp())
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), adapter)
    same = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    assert_close(tx.merge(low, frozen), tx.merge(same, frozen), 1e-6)


def test_a_chain_inside_of_a_chain_is_the_flat_one():
    """What a chain inside replaces is not lost, and is refused where the flat chain refuses it."""
    low, select = peftjax.lora(rank=2, targets=r'hidden'), peftjax.select(r'hidden/kernel')
    inside = peftjax.chain(select, low)
    for outside, said in ((low, 'write the later one earlier'), (select, 'leave that leaf out')):
        tx = peftjax.chain(outside, inside)
        with pytest.raises(ValueError, match=f'lose the adaptation; {said}'):
            tx.init(KEY, mlp())
    peftjax.chain(inside, low).init(KEY, mlp())
    mask = peftjax.fish_mask({'hidden/kernel': [0, 9]})
    moving = peftjax.intrinsic(dimension=3, targets=r'hidden/kernel')
    flat, nested = peftjax.chain(mask, moving, low), peftjax.chain(mask, peftjax.chain(moving, low))
    (x, y, z), frozen = moved(flat, mlp())
    expected = peftjax.adapt(mlp(), flat)((x, y, z), frozen, X)
    both = (x, (y, z))
    assert_close(peftjax.adapt(mlp(), nested)(both, nested.freeze(mlp(), both), X), expected)


def test_complex_and_wide_leaves_are_copied_as_they_are():
    kernel = jnp.asarray([[1.0 + 2.0j, 3.0j]], jnp.complex64)
    model = function(lambda p, x: jnp.abs(x @ p['w']), jnp.ones((1, 1), jnp.complex64), w=kernel)
    adapter, frozen = peftjax.select('w').init(KEY, model)
    assert adapter['w'].dtype == jnp.complex64
    merged = peftjax.select('w').merge(adapter, frozen, dtype=jnp.float32)
    assert_close(merged['w'], kernel, 0)


def test_a_copy_with_other_functions_is_not_described():
    low = peftjax.lora(rank=2, targets=r'hidden')
    assert low.replace(rules=lambda adapter, own: {}).about is None
    assert low.replace(about=low.about).about is low.about


def test_what_starts_from_a_part_belongs_beside_the_rest():
    """PiSSA's factors beside the whole weight, or LoRA's beside PiSSA's rest, are another model."""
    pissa, low = (
        peftjax.lora(rank=2, targets=r'hidden', init=init) for init in ('pissa', 'kaiming')
    )
    for first, second in ((pissa, low), (low, pissa)):
        adapter, _ = first.init(KEY, mlp())
        _, frozen = second.init(KEY, mlp())
        with pytest.raises(peftjax.AdapterError):
            peftjax.adapt(mlp(), second)(adapter, frozen, X)
        with pytest.raises(peftjax.AdapterError):
            peftjax.adapt(mlp(), first)(adapter, frozen, X)


def test_gates_and_the_method_inside_go_together():
    tx = peftjax.gated(peftjax.lora(rank=1, targets=r'(hidden|out)'))
    adapter, frozen = tx.init(KEY, mlp())
    fewer = {**adapter, 'gates': {'out/kernel': adapter['gates']['out/kernel']}}
    with pytest.raises(peftjax.AdapterError, match='gated has gates at'):
        peftjax.adapt(mlp(), tx)(fewer, frozen, X)
