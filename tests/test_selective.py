"""What the selective methods and training in a subspace promise besides the contract."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.core import paths
from peftjax.methods.subspace.fastfood import hadamard, normal, project
from peftjax.methods.subspace.projections import PROJECTIONS
from tests.algebra import KEY, mlp, moved
from tests.compiled import flops
from tests.contract_models import LAYERS, MODELS

UNKNOWN: Any = 'x'


def projected(vector, size, seed):
    """One projection of a vector."""
    return project(vector, (size,), jnp.asarray([seed], jnp.uint32))[0]


@pytest.mark.parametrize('bits', [0, 1, 4, 6, 11])
def test_the_fast_product_is_that_with_hadamards_matrix(bits):
    matrix = np.array([[1.0]])
    for _ in range(bits):
        matrix = np.kron(matrix, [[1, 1], [1, -1]])
    x = np.random.default_rng(0).normal(size=(3, 2**bits)).astype(np.float32)
    np.testing.assert_allclose(hadamard(jnp.asarray(x)), x @ matrix, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(('dimension', 'size'), [(1, 5), (2, 7), (16, 1000), (50, 4000)])
def test_the_projection_is_linear_with_rows_of_length_one_that_point_anywhere(dimension, size):
    matrix = jax.vmap(lambda v: projected(v, size, 7))(jnp.eye(dimension)).T
    v = jnp.asarray(np.random.default_rng(0).normal(size=dimension), jnp.float32)
    np.testing.assert_allclose(projected(v, size, 7), matrix @ v, atol=1e-5)
    width = 1 << (dimension - 1).bit_length()
    lengths = (matrix**2).sum(axis=1)
    if dimension == width:
        np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)
    np.testing.assert_allclose(lengths.mean(), dimension / width, rtol=0.1)
    assert np.linalg.matrix_rank(matrix) == dimension
    if size >= 1000:
        # Each row of a random projection is as likely as its opposite, and columns are apart.
        gram = matrix.T @ matrix / size * width
        np.testing.assert_allclose(gram, np.eye(dimension), atol=0.2)
        assert abs(matrix.mean()) < 0.02
    assert not jnp.allclose(projected(v, size, 7), projected(v, size, 8))


def test_the_projection_of_a_large_leaf_takes_memory_of_its_own_size():
    size, dimension = 1 << 20, 1000
    compiled = jax.jit(lambda v: projected(v, size, 1)).lower(jnp.ones(dimension)).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 10 * 4 * size  # A dense matrix would take 1,000 times.
    assert flops(compiled) < 500 * size


def test_every_hash_gives_a_finite_normal_number():
    ends = jnp.asarray([[0, 255, 2**31, 2**32 - 256, 2**32 - 1]], jnp.uint32)
    found = np.asarray(normal(ends))
    assert np.isfinite(found).all()
    assert (np.abs(found[0, [0, 1, 3, 4]]) > 5).all() and abs(found[0, 2]) < 1e-6


@pytest.mark.parametrize('kind', PROJECTIONS)
def test_a_projection_keeps_lengths_and_hardly_mixes_dimensions(kind):
    size, dimension = 1 << 14, 64
    tx = peftjax.intrinsic(dimension=dimension, projection=kind)
    model = peftjax.wrap(
        lambda params, x: x @ params['kernel'],
        {'kernel': jnp.zeros((128, size // 128))},
        jnp.ones((1, 128)),
    )
    adapter, frozen = tx.init(KEY, model)

    def place(theta):
        return tx.merge(dataclasses.replace(adapter, theta=theta), frozen)['kernel'].reshape(-1)

    matrix = jax.vmap(place)(jnp.eye(dimension))  # the projection's columns, each [size]
    gram = matrix @ matrix.T * dimension / size  # near the identity
    np.testing.assert_allclose(jnp.diag(gram).mean(), 1.0, rtol=0.05)
    apart = gram - jnp.diag(jnp.diag(gram))
    assert float(jnp.sqrt((apart**2).sum() / (dimension * (dimension - 1)))) < 0.06
    assert float(jnp.abs(matrix.mean(axis=1)).max()) < 0.01


def test_layers_have_scales_of_their_own_when_the_subspace_knows_of_structure():
    looped, scanned = (
        peftjax.intrinsic(dimension=40, structure_aware=True, targets=r'layers.*').init(
            KEY, MODELS[form]()
        )[0]
        for form in ('linen looped', 'linen scanned')
    )
    assert looped.theta.shape == scanned.theta.shape
    assert {scale.size for scale in scanned.scales.values()} == {LAYERS}
    with pytest.raises(ValueError, match='write at least dimension=5'):
        peftjax.intrinsic(dimension=4, structure_aware=True).init(KEY, mlp())


@pytest.mark.parametrize('form', ['linen looped', 'linen scanned', 'nnx looped'])
def test_top_layers_are_the_last_ones(form):
    model = MODELS[form]()
    tx = peftjax.top_layers(1, targets=r'layers.*/up/kernel')
    adapter, frozen = tx.init(KEY, model)
    merged = paths.flatten(tx.merge(jax.tree.map(lambda leaf: leaf + 1, adapter), frozen))
    by = {
        path: jnp.abs(leaf - merged[path]).reshape(-1, 8 * 16).max(axis=1)
        for path, leaf in paths.flatten(model.params).items()
        if path.endswith('up/kernel')
    }
    found = np.concatenate([by[path] for path in sorted(by)])
    np.testing.assert_allclose(found, [0, 1])
    with pytest.raises(ValueError, match='write at most the least'):
        peftjax.top_layers(3).init(KEY, model)


def test_the_fisher_information_is_that_of_each_example_and_chooses_entries():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    labels = jnp.arange(6) % 3

    def log_likelihood(params, example):
        return jax.nn.log_softmax(mlp().apply(params, example['x'][None])[0])[example['y']]

    batches = [{'x': x[:4], 'y': labels[:4]}, {'x': x[4:], 'y': labels[4:]}]
    found = peftjax.train.fisher(log_likelihood, mlp().params, batches)
    slopes = [
        jax.grad(log_likelihood)(mlp().params, {'x': x[i], 'y': labels[i]}) for i in range(len(x))
    ]
    for path, leaf in paths.flatten(found).items():
        expected = np.mean([paths.flatten(slope)[path] ** 2 for slope in slopes], axis=0)
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-9)
    positions = peftjax.largest_entries(found, 10, targets=r'.*/kernel')
    assert sum(map(len, positions.values())) == 10
    scores = {p: np.asarray(leaf).reshape(-1) for p, leaf in paths.flatten(found).items()}
    least = min(scores[path][places].min() for path, places in positions.items())
    others = np.concatenate(
        [np.delete(scores[p], positions.get(p, [])) for p in scores if p.endswith('kernel')]
    )
    assert others.max() <= least
    with pytest.raises(ValueError, match='no examples'):
        peftjax.train.fisher(log_likelihood, mlp().params, [])


def test_pruned_entries_are_the_small_ones_and_train_on_under_a_mask():
    tx = peftjax.diff_pruning(targets=r'(hidden|out)')
    adapter, frozen = moved(tx, mlp(), size=0.05)
    positions, sparse = peftjax.keep_entries(adapter, 7)
    assert sum(map(len, positions.values())) == 7
    mask = peftjax.fish_mask(positions)
    masked = paths.flatten(mask.merge(sparse, mask.freeze(mlp(), sparse)))
    whole, base = paths.flatten(tx.merge(adapter, frozen)), paths.flatten(mlp().params)
    changes = {path: np.abs(whole[path] - base[path]) for path in ('hidden/kernel', 'out/kernel')}
    cut = np.sort(np.concatenate([change.reshape(-1) for change in changes.values()]))[-7]
    for path, change in changes.items():
        kept = np.where(change >= cut - 1e-6, whole[path], base[path])
        np.testing.assert_allclose(masked[path], kept, atol=1e-6)


def test_gates_are_drawn_in_training_and_close_under_the_penalty():
    tx = peftjax.diff_pruning(alpha_init=0.0, targets=r'hidden')
    adapter, frozen = moved(tx, mlp())
    predict, x = peftjax.adapt(mlp(), tx), jnp.ones((2, 4))
    one, two = (predict(adapter, frozen, x, adapter_key=jax.random.key(seed)) for seed in (1, 2))
    assert not jnp.allclose(one, two)
    slopes = jax.grad(peftjax.expected_entries)(adapter)['hidden/kernel']
    assert (slopes['gate'] > 0).all()
    assert not slopes['diff'].any()
    with pytest.raises(ValueError, match='no diff and gate'):
        peftjax.expected_entries({})


EMBED = MODELS['linen looped']


@pytest.mark.parametrize(
    ('make', 'error', 'message'),
    [
        (lambda: peftjax.trainable_tokens([1, 1], targets='.*'), ValueError, 'different whole'),
        (
            lambda: peftjax.trainable_tokens([13], targets='embed/embedding').init(KEY, EMBED()),
            ValueError,
            r"beyond the 13 tokens of 'embed/embedding' \(13, 8\) float32; write ids below 13",
        ),
        (
            lambda: peftjax.trainable_tokens([1], targets='out/bias').init(KEY, mlp()),
            ValueError,
            r'no \[vocabulary, features\]; target the leaf of an embedding',
        ),
        (lambda: peftjax.top_layers(0), ValueError, 'at least 1'),
        (
            lambda: peftjax.top_layers(1).init(KEY, mlp()),
            peftjax.TargetError,
            'none has a number in its path',
        ),
        (lambda: peftjax.fish_mask({}), ValueError, 'positions is empty'),
        (lambda: peftjax.fish_mask({'out/bias': [1, 1]}), ValueError, '1 of them different'),
        (
            lambda: peftjax.fish_mask({'out/bais': [1]}).init(KEY, mlp()),
            peftjax.TargetError,
            "near names: .'out/bias'",
        ),
        (
            lambda: peftjax.fish_mask({'out/bias': [3]}).init(KEY, mlp()),
            ValueError,
            r"beyond the 3 entries of 'out/bias' \(3,\) float32",
        ),
        (lambda: peftjax.largest_entries({'a': jnp.ones(2)}, 3), ValueError, 'between 1 and the 2'),
        (
            lambda: peftjax.intrinsic(dimension=2).freeze(mlp(), {}),
            peftjax.AdapterError,
            'expects a Subspace',
        ),
        (
            lambda: peftjax.intrinsic(dimension=2, projection='dense').freeze(
                mlp(), peftjax.intrinsic(dimension=2).init(KEY, mlp())[0]
            ),
            peftjax.AdapterError,
            r"write intrinsic\(projection='fastfood'\)",
        ),
        (lambda: peftjax.intrinsic(dimension=2, projection=UNKNOWN), ValueError, "'x' is none of"),
    ],
)
def test_wrong_arguments_say_what_to_write(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_table_that_is_multiplied_by_one_hot_rows_trains_rows():
    params = {'table': jnp.arange(96.0).reshape(12, 8)}
    example = jnp.zeros((2, 3), jnp.int32)
    model = peftjax.wrap(
        lambda params, ids: jax.nn.one_hot(ids, 12) @ params['table'], params, example
    )
    adapter, _ = peftjax.trainable_tokens((3,), targets='table').init(jax.random.key(0), model)
    np.testing.assert_array_equal(adapter['table'], params['table'][3:4])
