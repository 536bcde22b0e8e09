"""A run that starts from an adapter: ours, or of Hugging Face's peft."""

import jax
import numpy as np
import pytest

import peftjax
from peftjax.interop.folder import trees
from peftjax.train.settings import SettingsError
from peftjax.train.warm_start import WarmStart
from tests import tiny_runs

IDS = np.arange(4, 12, dtype=np.int32)[None]


def method(rank=2, **options):
    return peftjax.chain(
        peftjax.lora(rank=rank, targets=r'layers/.*/kernel', **options),
        peftjax.select(r'classifier/.*'),
    )


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return str(tiny_runs.checkpoint(tmp_path_factory.mktemp('bert') / 'bert', 'tiny_bert'))


def load(source, labels=2):
    return peftjax.load(source, task='classification', num_labels=labels)


@pytest.fixture(scope='module')
def base(source):
    return load(source)


def trained(model, tx):
    adapter, frozen = tx.init(jax.random.key(0), model)
    return peftjax.testing.perturb(adapter, 0), frozen


@pytest.fixture(scope='module')
def ours(base, tmp_path_factory):
    folder, tx = tmp_path_factory.mktemp('ours'), method()
    adapter, frozen = trained(base, tx)
    peftjax.save(folder, base, tx, adapter, frozen)
    return folder, peftjax.adapt(base, tx)(adapter, frozen, input_ids=IDS)


@pytest.fixture(scope='module')
def theirs(base, tmp_path_factory):
    folder, tx = tmp_path_factory.mktemp('theirs'), method()
    adapter, frozen = trained(base, tx)
    peftjax.save_adapter(folder, base, tx, adapter)
    return folder, peftjax.adapt(base, tx)(adapter, frozen, input_ids=IDS)


@pytest.mark.parametrize('whose', ['ours', 'theirs'])
def test_a_run_begins_with_what_the_folder_computes(base, whose, request):
    folder, expected = request.getfixturevalue(whose)
    tx = method()
    fresh, frozen = tx.init(jax.random.key(7), base)
    adapter = WarmStart(str(folder), base)(fresh)
    found = peftjax.adapt(base, tx)(adapter, frozen, input_ids=IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert not np.allclose(peftjax.adapt(base, tx)(fresh, frozen, input_ids=IDS), expected)


def test_a_head_of_another_shape_starts_afresh_and_the_rest_does_not(source, ours):
    folder, _ = ours
    model, tx = load(source, labels=5), method()
    fresh, _ = tx.init(jax.random.key(7), model)
    before, after = map(trees.by_path, (fresh, WarmStart(str(folder), model)(fresh)))
    for path, leaf in after.items():
        same = np.array_equal(leaf, before[path])
        # A new head's bias begins with zeros in both.
        assert same == ('classifier' in path), path


@pytest.mark.parametrize(
    ('tx', 'message'),
    [
        (
            method(rank=4),
            r"has shape .* for 'layers/.*', of shape .*; give the method and the rank",
        ),
        (
            peftjax.chain(
                peftjax.lora(rank=2, targets=r'.*query/kernel'), peftjax.select(r'class.*')
            ),
            r"holds 'layers/.*', for which this run has no place",
        ),
        (
            peftjax.chain(method(), peftjax.select(r'.*LayerNorm.*|.*norm/.*')),
            r"has nothing for '.*norm",
        ),
        (peftjax.ia3(targets=r'layers/.*/kernel'), r'has nothing for'),
    ],
    ids=['another rank', 'fewer leaves', 'more leaves', 'another method'],
)
def test_arrays_that_do_not_fit_are_named(base, ours, tx, message):
    fresh, _ = tx.init(jax.random.key(0), base)
    with pytest.raises(SettingsError, match=message):
        WarmStart(str(ours[0]), base)(fresh)


def test_an_adapter_of_weights_of_its_own_is_refused(base, tmp_path):
    tx = method(init='pissa')
    adapter, frozen = trained(base, tx)
    peftjax.save(tmp_path, base, tx, adapter, frozen)
    with pytest.raises(SettingsError, match='took a part of its base'):
        WarmStart(str(tmp_path), base)


def test_two_methods_on_one_leaf_are_refused(base, tmp_path):
    tx = peftjax.chain(*[peftjax.lora(rank=2, targets=r'.*query/kernel')] * 2)
    peftjax.save(tmp_path, base, tx, *trained(base, tx))
    with pytest.raises(SettingsError, match='two methods on one leaf'):
        WarmStart(str(tmp_path), base)
