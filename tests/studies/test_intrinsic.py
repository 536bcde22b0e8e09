"""The studies of the intrinsic dimension: tiny ones from end to end, a symmetry, and verdicts."""

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
from experiments.studies.intrinsic import (
    encoders,
    images,
    images_report,
    language,
    language_report,
    nets,
)
from experiments.studies.intrinsic.fitting import Fitter, Run, Split
from experiments.studies.merging.tables import Example
from experiments.studies.results import read
from peftjax.core import paths
from peftjax.testing.measures import shapes
from peftjax.train import init_state, make_train_step

RNG = np.random.default_rng(0)


@pytest.fixture(name='dataset', scope='module')
def _dataset(tmp_path_factory) -> Path:
    """Images of random pixels, brighter with their label, in the files of Fashion-MNIST."""
    folder = tmp_path_factory.mktemp('images')
    for part, count in (('train', 800), ('t10k', 300)):
        labels = RNG.integers(0, 10, count).astype(np.uint8)
        pixels = RNG.integers(0, 100, (count, 28, 28)) + 15 * labels[:, None, None]
        for name, array in (('images-idx3', pixels.astype(np.uint8)), ('labels-idx1', labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>i4').tobytes()
            path = folder / f'{part}-{name}-ubyte.gz'
            path.write_bytes(gzip.compress(head + array.tobytes()))
    return folder


def test_the_images_are_those_of_the_files(dataset):
    splits = nets.read_images(dataset, train=500, validation=100, test=200)
    assert {name: len(split.labels) for name, split in splits.items()} == {
        'train': 500,
        'validation': 100,
        'test': 200,
    }
    image = splits['train'].inputs['image']
    assert image.shape == (500, 28, 28) and image.min() >= 0 and image.max() <= 1
    brightness = np.asarray(image).mean((1, 2))
    assert np.corrcoef(brightness, splits['train'].labels)[0, 1] > 0.9
    moved = nets.shuffled_pixels(splits, seed=0)['train'].inputs['image']
    np.testing.assert_allclose(np.asarray(moved).mean((1, 2)), brightness, rtol=1e-5)
    assert (moved != image).mean() > 0.9
    drawn = nets.shuffled_labels(splits, seed=0)['train'].labels
    assert np.bincount(drawn).tolist() == np.bincount(splits['train'].labels).tolist()
    assert (drawn != splits['train'].labels).mean() > 0.7


def test_a_tiny_study_of_images_ends_and_is_gone_on_with(dataset, tmp_path, monkeypatch):
    protocol = dataclasses.replace(images.TINY, images=str(dataset))
    rows = images.run(tmp_path, protocol)
    lines = (tmp_path / 'results.jsonl').read_text()
    monkeypatch.setattr(Fitter, 'fit', lambda *args: pytest.fail('it trains again'))
    assert images.run(tmp_path, protocol) == rows == read(tmp_path / 'results.jsonl')
    assert (tmp_path / 'results.jsonl').read_text() == lines
    assert {row['stage'] for row in rows} == {'tune', 'final', 'together'}
    keys = images_report.curves_of(rows).keys
    assert keys == [('fc20', 'fastfood', 'true'), ('fc20', 'sparse', 'labels')]
    assert all(
        len(images_report.curves_of(rows).needed(key).values) == protocol.seeds for key in keys
    )
    images_report.draw(rows, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')
    assert '| fc20 | fastfood | true |' in images_report.text(rows)


def test_shuffled_pixels_are_a_symmetry_of_the_fully_connected_net():
    """With the rows of weights and projection in the new order, training is the same."""
    order = np.random.default_rng(1).permutation(28 * 28)
    x = RNG.normal(size=(40, 28, 28)).astype(np.float32)
    y = jnp.asarray(RNG.integers(0, 10, 40))
    moved = x.reshape(40, -1)[:, order].reshape(x.shape)
    model = nets.network('fc20', seed=0)
    first = model.params['Dense_0']['kernel']
    params = {**model.params, 'Dense_0': {**model.params['Dense_0'], 'kernel': first[order]}}
    tx = peftjax.intrinsic(dimension=30, projection='dense')
    adapter, frozen = tx.init(jax.random.key(0), model)
    _, other = tx.init(jax.random.key(0), model.replace(params=params))
    rows = other.own['Dense_0/kernel']['matrix'].reshape(28 * 28, -1)[order]
    own = {**other.own, 'Dense_0/kernel': {'matrix': rows.reshape(-1, 30)}}
    other = other._replace(own=type(other.own)('intrinsic', own))
    predict = peftjax.adapt(model, tx)

    def trained(frozen, images):
        def loss(adapter, frozen, batch, key):
            logits = predict(adapter, frozen, image=images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), {}

        step = jax.jit(make_train_step(loss, optax.adam(1e-2)))
        state = init_state(adapter, optax.adam(1e-2), jax.random.key(0))
        losses = []
        for _ in range(20):
            state, metrics = step(state, frozen, None)
            losses.append(metrics['loss'])
        return state.adapter.theta, losses[-1]

    theta, loss = trained(frozen, x)
    same, same_loss = trained(other, moved)
    np.testing.assert_allclose(same, theta, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(same_loss, loss, rtol=1e-5)
    different, _ = trained(frozen, moved)
    assert float(jnp.abs(different - theta).max()) > 1e-3


def _tables() -> Any:
    words = 'alpha beta gamma delta epsilon zeta eta theta iota kappa'.split()

    def examples(count):
        labels = RNG.integers(0, 3, count)
        return [Example(' '.join(RNG.choice(words, 6)) + f' {words[n]}', 'abc'[n]) for n in labels]

    def table():
        return {'train': examples(60), 'validation': examples(20), 'test': examples(20)}

    return {name: table() for name in ('trec', 'reviews', 'news')}


@pytest.mark.slow
def test_a_tiny_study_of_language_ends_and_is_gone_on_with(tmp_path, monkeypatch):
    tables = _tables()
    rows = language.run(tmp_path, language.TINY, tables)
    monkeypatch.setattr(Fitter, 'fit', lambda *args: pytest.fail('it trains again'))
    monkeypatch.setattr(encoders, 'pretrained', lambda *args: pytest.fail('it pretrains again'))
    assert language.run(tmp_path, language.TINY, tables) == rows
    keys = language_report.curves_of(rows).keys
    assert keys == [('small', '0', 'SAID'), ('small', '2', 'DID')]
    language_report.draw(rows, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


def test_pretraining_learns_to_tell_masked_tokens():
    small = encoders.Small(vocabulary=20, layers=1, width=32, length=8, batch_size=8, schedule=200)
    ids = np.tile(np.arange(2, 10, dtype=np.int32), (50, 1))  # always the same sentence
    module = small.module(None, 'none')
    hidden = jnp.where(jnp.arange(8) == 3, 1, ids[:1])  # its fourth token, 5, is masked
    empty: Any = module.init(jax.random.key(0), input_ids=hidden)['params']
    right = {}
    for step, leaves in encoders.pretrained(small, ids, (0, 150)):
        params = paths.replace(empty, leaves)
        states: Any = module.apply({'params': params}, input_ids=hidden)
        scores = states.last_hidden_state[0, 3] @ leaves['embeddings/word_embeddings/embedding'].T
        right[step] = float(jax.nn.softmax(scores)[5])
    assert right[0] < 0.2 and right[150] > 0.8


@pytest.mark.sampled
@pytest.mark.parametrize('weights', ['pretrained', 'permuted', 'random'])
def test_other_weights_of_minilm_have_the_same_shapes(weights):
    given, made = encoders.minilm(3, 'pretrained', 0), encoders.minilm(3, weights, 0)
    assert shapes(made.params) == shapes(given.params)
    before, after = paths.flatten(given.params), paths.flatten(made.params)
    np.testing.assert_array_equal(before['classifier/kernel'], after['classifier/kernel'])
    query, norm = 'layers/attention/query/kernel', 'layers/ffn/layer_norm'
    assert np.array_equal(before[query], after[query]) == (weights == 'pretrained')
    assert np.array_equal(before[f'{norm}/scale'], after[f'{norm}/scale']) == (weights != 'random')
    if weights == 'permuted':
        for one, other in zip(before[query], after[query], strict=True):
            np.testing.assert_array_equal(np.sort(one.ravel()), np.sort(other.ravel()))
    if weights == 'random':
        assert abs(float(after[query].std()) - 0.02) < 1e-3
        assert np.all(after[f'{norm}/scale'] == 1) and np.all(after[f'{norm}/bias'] == 0)


def test_a_run_that_trains_everything_learns_and_its_rate_follows_the_schedule():
    x = RNG.normal(size=(200, 28, 28)).astype(np.float32)
    y = (x.mean((1, 2)) > 0).astype(np.int32)
    split = Split({'image': x + 0.2 * y[:, None, None]}, y)
    fitter = Fitter(dict.fromkeys(('train', 'validation', 'test'), split), most=100)
    run = Run(steps=60, batch_size=20, rate=3e-3, seed=0, decays=True)
    found = fitter.fit('full', nets.network('fc20', 0), peftjax.full(), run)
    assert found['train/accuracy'] > 0.95 and found['trained'] == 784 * 20 + 20 + 420 + 210
    still = fitter.fit('full', nets.network('fc20', 0), peftjax.full(), run._replace(rate=0.0))
    assert still['train/accuracy'] < 0.7
