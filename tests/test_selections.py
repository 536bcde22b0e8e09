"""`peftjax.targets`: exceptions, counts, and methods that take them."""

import jax
import jax.numpy as jnp
import pytest

import peftjax
from peftjax.core import paths
from tests.algebra import KEY, X, assert_raises, function, mlp, unfollowed
from tests.contract_models import MODELS


def test_exclude():
    sites = MODELS['linen scanned']().sites
    found = sites.match_weights(peftjax.targets(r'layers/.*', exclude=[r'.*/attention/.*', 'up']))
    assert [site.path for site in found] == ['layers/down/kernel']
    # A norm has no matrix. To exclude it changes nothing, and is no mistake.
    assert len(sites.match_weights(peftjax.targets('all-linear', exclude=['norm']))) == 6
    leaves = sites.match_leaves(peftjax.targets(r'.*/bias', exclude=r'.*/attention/.*'))
    assert leaves == ['layers/down/bias', 'layers/norm/bias', 'layers/up/bias']
    cores = MODELS['linen looped']().sites.match_modules(
        peftjax.targets(['attention_fn'], exclude=r'layers_0/.*', expect=1)
    )
    assert [site.path for site in cores] == ['layers_1/attention/attention_fn']


def test_what_is_excluded_need_not_be_adaptable():
    model = function(unfollowed, X, w=jnp.ones((4, 6)), top=jnp.ones((6, 2)))
    with pytest.raises(peftjax.TargetError, match="'top'"):
        model.sites.match_weights(r'.*')
    found = model.sites.match_weights(peftjax.targets(r'.*', exclude=['top']))
    assert [site.path for site in found] == ['w']


@pytest.mark.parametrize(
    ('targets', 'said'),
    [
        (peftjax.targets(r'.*', exclude=['uot']), ("'uot'", "'out'")),
        (peftjax.targets(r'hidden', exclude=r'.*'), ('selects nothing', 'hidden/kernel')),
        (
            peftjax.targets(r'.*', expect=1),
            ('matches 2 instead of 1', 'hidden/kernel', 'out/kernel'),
        ),
    ],
)
def test_exceptions_that_are_wrong(targets, said):
    tx = peftjax.lora(rank=2, targets=targets)
    assert_raises(peftjax.TargetError, lambda: tx.init(KEY, mlp()), *said)


@pytest.mark.parametrize('expect', [0, 1.5, '3'])
def test_an_expected_number_is_one(expect):
    assert_raises(peftjax.TargetError, lambda: peftjax.targets('a', expect=expect), 'expect is')


@pytest.mark.parametrize('pattern', ['*/a', ['*/a'], (3,), [], None])
def test_patterns_that_are_none(pattern):
    assert_raises(peftjax.TargetError, lambda: peftjax.targets(pattern), 'write')
    if pattern:
        assert_raises(peftjax.TargetError, lambda: peftjax.targets('a', exclude=pattern), 'write')


def test_a_selection_is_a_value():
    chosen = peftjax.targets(['a', 'b'], exclude=r'.*/c', expect=3)
    assert repr(chosen) == "targets(('a', 'b'), exclude='.*/c', expect=3)"
    assert repr(peftjax.targets('a')) == "targets('a')"
    assert chosen == peftjax.targets(('a', 'b'), exclude=r'.*/c', expect=3)
    assert len({chosen, peftjax.targets(('a', 'b'), exclude=r'.*/c', expect=3)}) == 1
    tx = peftjax.lora(rank=2, targets=chosen)
    assert tx.about is not None and tx.about.arguments['targets'] is chosen
    assert repr(chosen) in repr(tx)


@pytest.mark.parametrize(
    'targets', [['hidden', 'out'], 'all-linear', peftjax.targets(r'.*', exclude=['out'])]
)
@pytest.mark.parametrize('kind', ['lora', 'ia3', 'diff_pruning', 'quantize'])
def test_every_method_takes_them(targets, kind):
    expected = [site.path for site in mlp().sites.match_weights(targets)]
    if kind == 'quantize':
        leaves = paths.flatten(peftjax.quantize(mlp(), 'int8', targets=targets).params)
        found = [path for path, leaf in leaves.items() if not isinstance(leaf, jax.Array)]
    else:
        more = {'rank': 2} if kind == 'lora' else {}
        tx = getattr(peftjax, kind)(targets=targets, **more)
        found = list(tx.init(KEY, mlp())[0])
    assert [path for path in found if path.endswith('kernel')] == expected


def test_ia3_with_two_kinds_of_targets():
    model = MODELS['linen scanned']()
    tx = peftjax.ia3(
        targets=['key', 'value'],
        feedforward=peftjax.targets('all-linear', exclude=['key', 'value', 'up', 'down']),
    )
    names = {path: set(entry) for path, entry in tx.init(KEY, model)[0].items()}
    assert names == {
        'layers/attention/key/kernel': {'output_and_bias'},
        'layers/attention/value/kernel': {'output_and_bias'},
        'layers/attention/query/kernel': {'input'},
        'layers/attention/out/kernel': {'input'},
    }
    both = peftjax.ia3(targets=['key'], feedforward=r'.*/(key|value)')
    assert_raises(ValueError, lambda: both.init(KEY, model), 'targets and feedforward both match')
