"""What values look like when they are printed: on a screen, with layers folded, without numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.core import readable
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from tests.algebra import KEY, mlp
from tests.checkpoint_files import golden, write_folder

LAYERS = 24
IDS = jax.ShapeDtypeStruct((2, 8), jnp.int32)


@pytest.fixture(scope='module')
def deep():
    """A decoder of 24 layers that are not stacked, of shapes alone."""
    config = LlamaConfig(50, 32, 64, LAYERS, 4, 2, 8, max_position_embeddings=64)
    module = Llama(config, scan=False)
    shapes = jax.eval_shape(lambda: module.init(KEY, input_ids=jnp.ones(IDS.shape, IDS.dtype)))
    return peftjax.wrap(module, shapes['params'], {'input_ids': IDS}, config=config)


def assert_fits(text, lines=40):
    assert len(text.split('\n')) <= lines
    assert max(map(len, text.split('\n'))) <= 100


@pytest.mark.parametrize('what', ['model', 'sites', 'entry', 'frozen', 'summary'])
def test_a_model_of_many_layers_fits_a_screen(deep, what):
    tx = peftjax.chain(peftjax.lora(rank=2, targets='all-linear'), peftjax.select(r'.*norm/scale'))
    (_, norms), frozen = jax.eval_shape(tx.init, KEY, deep)
    shown = {'model': deep, 'sites': deep.sites, 'entry': norms, 'frozen': frozen}
    text = repr(peftjax.summary(tx, deep) if what == 'summary' else shown[what])
    assert_fits(text)
    line = {
        'model': 'layers_0..23/mlp/up_proj/kernel              24 x (32, 64) float32',
        'sites': '/mlp/up_proj/kernel              24 x (32, 64)  float32  (), 32 -> 64',
        'entry': 'layers_0..23/input_layernorm/scale           24 x (32,) float32',
        'frozen': '24 x Hole((32,) float32)',
        'summary': '0/layers_0..23/mlp/up_proj/kernel/b            24 x (2, 64)  float32  24 x 128',
    }
    assert line[what] in text


def test_a_model_says_how_large_it_is(deep):
    assert repr(deep).startswith('Model (LlamaConfig): 225,952 parameters in 219 leaves\n')
    assert repr(mlp()).startswith('Model: 67 parameters in 4 leaves\n')


def test_a_model_of_many_unlike_leaves_is_cut():
    params = {f'{name}{i}': jnp.ones((2, i + 1)) for i in range(60) for name in 'ab'}
    text = repr(mlp().replace(params=params))
    assert_fits(text)
    assert text.endswith('... and 82 more')


@pytest.mark.parametrize(
    'value',
    [
        lambda: mlp(),
        lambda: peftjax.lora(rank=2, targets=r'.*').init(KEY, mlp()),
        lambda: peftjax.full().init(KEY, mlp()),
        lambda: peftjax.intrinsic(dimension=9, structure_aware=True).init(KEY, mlp()),
        lambda: peftjax.lora(rank=2, targets=r'hidden', init={'hidden/kernel': jnp.ones((4, 2))}),
        lambda: peftjax.fish_mask({f'{name}/kernel': np.arange(3) for name in ('hidden', 'out')}),
        lambda: peftjax.psoft(peftjax.principal_subspaces(mlp(), rank=2, targets=r'.*')),
        lambda: mlp().sites,
    ],
)
def test_no_values_of_arrays_are_shown(value):
    text = repr(value())
    assert not re.search(r'[Aa]rray\(|\d\.\d\d', text), text


def test_an_entry_in_one_line():
    adapter, frozen = peftjax.lora(rank=2, targets=r'hidden').init(KEY, mlp())
    assert repr(adapter['hidden/kernel']) == 'lora(a (4, 2) float32, b (2, 8) float32)'
    assert repr(frozen).split('\n') == [
        'Frozen',
        '  params',
        '    hidden/bias    (8,) float32',
        '    hidden/kernel  (4, 8) float32',
        '    out/bias       (3,) float32',
        '    out/kernel     (8, 3) float32',
        '  own',
        '    hidden/kernel/scale  () float32',
    ]
    # Whatever stands where an array stood.
    place = jax.sharding.PartitionSpec('data')
    places = jax.tree.map(lambda leaf: place, adapter)
    assert repr(places['hidden/kernel']) == f'lora(a {place}, b {place})'


def test_quantised_leaves_and_holes_say_what_they_are():
    small = peftjax.quantize(mlp(), 'int8', targets=r'hidden')
    assert 'hidden/kernel  QuantizedArray(int8, (4, 8) float32, 64 bytes)' in repr(small)


@pytest.mark.parametrize(
    ('paths', 'shown'),
    [
        (['a/0/w', 'a/1/w', 'a/2/w'], ['3 x a/0..2/w']),
        (['a_3/w', 'a_5/w', 'a_7/w'], ['3 x a_3,5,7/w']),
        (['a_0/e_0', 'a_0/e_1', 'a_1/e_0', 'a_1/e_1'], ['4 x a_0..1/e_0..1']),
        (['a_0/e_0', 'a_0/e_1', 'a_1/e_0'], ['a_0/e_0', 'a_0/e_1', 'a_1/e_0']),
        (['a_0/w', 'b_1/w'], ['a_0/w', 'b_1/w']),
        (['wi_0', 'wi_1', 'conv1', 'conv2'], ['2 x wi_0..1', 'conv1', 'conv2']),
        (['10/w', '9/w', '8/w'], ['3 x 8..10/w']),
    ],
)
def test_numbers_fold_where_a_range_is_true(paths, shown):
    folded = readable.fold((path,) for path in paths)
    assert [readable.times(count, row[0]) for count, row in folded] == shown


def test_rows_that_differ_otherwise_do_not_fold():
    rows = [('a_0', '(2,)'), ('a_1', '(3,)'), ('a_2', '(2,)')]
    assert readable.fold(rows) == [(2, ('a_0,2', '(2,)')), (1, ('a_1', '(3,)'))]


# --- a head that nobody trains ------------------------------------------------------------------


@pytest.fixture(scope='module')
def headless(tmp_path_factory):
    config, weights, *_ = golden('bert')
    kept = {name: each for name, each in weights.items() if 'classifier' not in name}
    return write_folder(tmp_path_factory.mktemp('bert') / 'base', config, kept)


@pytest.mark.parametrize('abstract', [True, False])
def test_a_new_head_that_is_frozen(headless, abstract):
    model = peftjax.load(headless, task='classification', num_labels=2, abstract=abstract)
    assert model.fresh == ('classifier/bias', 'classifier/kernel')
    alone = peftjax.lora(rank=2, targets='all-linear')
    found = peftjax.summary(alone, model)
    assert found.untrained == model.fresh
    assert 'warning: classifier/bias, classifier/kernel start at random' in str(found)
    assert "peftjax.select(r'(classifier)/.*')" in str(found)
    half = peftjax.summary(peftjax.chain(peftjax.select(r'classifier/kernel'), alone), model)
    assert half.untrained == ('classifier/bias',)
    whole = peftjax.summary(peftjax.chain(alone, peftjax.select(r'(classifier)/.*')), model)
    assert whole.untrained == () and 'warning' not in str(whole)
    assert peftjax.summary(peftjax.full(), model).untrained == ()


def test_what_is_fresh_goes_with_the_model(headless):
    model = peftjax.load(headless, task='classification', num_labels=2)
    again = peftjax.load(headless, task='classification', num_labels=2, key=KEY, like=model)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, again)
    assert doubled.fresh == model.fresh and len(model.fresh) == 2


def test_a_head_of_the_checkpoint_is_not_fresh(tmp_path):
    config, weights, *_ = golden('bert')
    model = peftjax.load(
        write_folder(tmp_path / 'base', config, weights), task='classification', abstract=True
    )
    assert model.fresh == ()
    assert peftjax.summary(peftjax.lora(rank=2, targets='all-linear'), model).untrained == ()
