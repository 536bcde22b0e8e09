"""Targets: names, patterns, and what raises."""

import re

import jax.numpy as jnp
import pytest

import peftjax
from peftjax.core import paths
from tests.algebra import X, assert_raises, mlp
from tests.contract_models import MODELS


@pytest.mark.parametrize(
    ('targets', 'found'),
    [
        (['up'], ['layers/up/kernel']),
        (('query', 'value'), ['layers/attention/query/kernel', 'layers/attention/value/kernel']),
        (['query', r'layers/(up|down)'], ['layers/attention/query', 'layers/down', 'layers/up']),
        (['embed'], ['embed/embedding']),
        (r'layers/up', ['layers/up/kernel']),
        ([peftjax.targets(['query', 'key'], exclude=['key']), 'up'], ['layers/a', 'layers/up']),
    ],
)
def test_a_list_of_names(targets, found):
    sites = MODELS['linen scanned']().sites.match_weights(targets)
    assert len(sites) == len(found)
    assert all(site.path.startswith(name) for site, name in zip(sites, found, strict=True))


@pytest.mark.parametrize(('targets', 'raises'), [('query', True), (['query'], False)])
def test_a_string_is_a_pattern_for_the_whole_path(targets, raises):
    sites = MODELS['linen scanned']().sites
    if raises:
        with pytest.raises(peftjax.TargetError, match="'query' matches no weight matrix"):
            sites.match_weights(targets)
    else:
        assert len(sites.match_weights(targets)) == 1


def nested(p, x):
    return x @ p['out'] @ p['deep']['out']


def test_a_name_in_a_list_is_the_last_part_at_every_depth():
    params = {'out': jnp.ones((4, 3)), 'deep': {'out': jnp.ones((3, 2))}}
    model = peftjax.wrap(nested, params, (X,))
    found = [site.path for site in model.sites.match_weights(['out'])]
    assert found == ['deep/out', 'out']
    assert [site.path for site in model.sites.match_weights('out')] == ['out']
    assert [site.path for site in model.sites.match_weights(paths.exactly(['out']))] == ['out']
    assert list(paths.flatten(peftjax.partition(model.params, ['out'])[0])) == found
    assert list(paths.flatten(peftjax.partition(model.params, paths.exactly(['out']))[0])) == [
        'out'
    ]


def test_top_modules_in_a_tuple_mean_what_they_did():
    both = mlp().sites.match_weights((r'hidden', r'out'))
    assert [site.path for site in both] == ['hidden/kernel', 'out/kernel']


def test_names_of_modules_and_of_leaves():
    model = MODELS['linen looped']()
    assert [site.path for site in model.sites.match_modules(['attention_fn'])] == [
        'layers_0/attention/attention_fn',
        'layers_1/attention/attention_fn',
    ]
    biases = model.sites.match_leaves(['bias'])
    assert biases == model.sites.match_leaves(r'.*/bias') and len(biases) > 4


@pytest.mark.parametrize(
    'targets', [['query', 'valeu'], (r'.*/query', 'valeu'), peftjax.targets(['query', 'valeu'])]
)
def test_each_entry_must_match(targets):
    model = MODELS['linen scanned']()
    assert_raises(
        peftjax.TargetError, lambda: model.sites.match_weights(targets), "'valeu'", '/value'
    )
    # Of a module and of a leaf too.
    assert_raises(peftjax.TargetError, lambda: model.sites.match_modules(['nrom']), 'norm')
    assert_raises(peftjax.TargetError, lambda: model.sites.match_leaves(['bais']), '/bias')


@pytest.mark.parametrize(
    'pattern', [r'layers_(0|2)/.*/query', r'layers/1/.*', ['query', r'layers_1/up']]
)
def test_single_layers_of_a_scanned_model(pattern):
    model = MODELS['linen scanned']()
    said = ('2 layers stacked', "'layers/", 'load(..., scan=False)')
    assert_raises(peftjax.TargetError, lambda: model.sites.match_weights(pattern), *said)


@pytest.mark.parametrize(
    ('match', 'right', 'wrong'),
    [
        ('match_modules', r'layers_1/up', r'layers_1/pu'),
        ('match_leaves', r'layers_1/up/bias', r'layers_1/up/bais'),
    ],
)
def test_single_layers_of_a_scanned_model_by_module_and_leaf(match, right, wrong):
    sites = MODELS['linen scanned']().sites
    with pytest.raises(peftjax.TargetError, match='scan=False'):
        getattr(sites, match)(right)
    with pytest.raises(peftjax.TargetError) as caught:
        getattr(sites, match)(wrong)
    assert 'scan=False' not in str(caught.value)


@pytest.mark.parametrize('targets', ['norm', ['norm']])
def test_the_select_that_is_proposed_selects_the_vectors(targets):
    params = {'norm': {'scale': jnp.ones(3), 'bias': jnp.ones(3)}, 'w': jnp.ones((4, 3))}
    model = peftjax.wrap(
        lambda p, x: x @ p['w'] * p['norm']['scale'][None] + p['norm']['bias'][None], params, (X,)
    )
    with pytest.raises(peftjax.TargetError, match='only') as caught:
        model.sites.match_weights(targets)
    (proposed,) = re.findall(r'peftjax[.]select[(]r(.*)[)] trains', str(caught.value))
    assert model.sites.match_leaves(proposed[1:-1]) == ['norm/bias', 'norm/scale']
