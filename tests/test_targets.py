"""Targets: names, patterns, `'all-linear'`, exceptions, and what raises."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import peftjax
from peftjax.core import paths
from tests.algebra import KEY, X, assert_raises, function, mlp
from tests.checkpoint_files import VARIANTS, task_of
from tests.contract_models import IDS, MODELS
from tests.oracle.cases import GOLDEN

# --- lists of names -----------------------------------------------------------------------------


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
    assert [site.path for site in model.sites.match_modules(['core'])] == [
        'layers_0/core',
        'layers_1/core',
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
    assert_raises(peftjax.TargetError, lambda: model.sites.match_modules(['coer']), 'core')
    assert_raises(peftjax.TargetError, lambda: model.sites.match_leaves(['bais']), '/bias')


# --- all-linear ---------------------------------------------------------------------------------

# What each family multiplies by in a layer; T5 and Whisper have two stacks of different layers.
_LLAMA = {f'self_attn/{n}_proj' for n in 'qkvo'} | {f'mlp/{n}_proj' for n in ('gate', 'up', 'down')}
_BERT = {f'attention/{n}' for n in ('query', 'key', 'value', 'output')} | {
    'ffn/intermediate',
    'ffn/output',
}
_T5 = {f'{a}_attn/{n}' for a in ('self', 'cross') for n in 'qkvo'} | {'ffn/wo'}
_WHISPER = {f'{a}_attn/{n}_proj' for a in ('self', 'cross') for n in ('q', 'k', 'v', 'out')}
LAYER = {
    'bert': _BERT,
    'roberta': _BERT,
    'vit': _BERT,
    'dinov2': _BERT,
    'dinov2_swiglu': _BERT - {'ffn/intermediate', 'ffn/output'}
    | {'ffn/weights_in', 'ffn/weights_out'},
    'gpt2': {'attn/c_attn', 'attn/c_proj', 'mlp/c_fc', 'mlp/c_proj'},
    't5': _T5 | {'ffn/wi'},
    't5_gated': _T5 | {'ffn/wi_0', 'ffn/wi_1'},
    't5_untied': _T5 | {'ffn/wi_0', 'ffn/wi_1'},
    'whisper': _WHISPER | {'ffn/fc1', 'ffn/fc2'},
}
# What stands outside of the layers and is no head.
BETWEEN = {'bert': {'pooler'}, 'bert_tanh': {'pooler'}}


def expected(variant):
    exact = LAYER.get(variant)
    return LAYER.get(variant.partition('_')[0], _LLAMA) if exact is None else exact


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_all_linear_of_every_family(variant, scan):
    folder = GOLDEN / f'tiny_{variant}' / 'base'
    model = peftjax.load(folder, task=task_of(variant), scan=scan, abstract=True)
    linear = {site.path for site in model.sites.match_weights('all-linear')}
    layer = re.compile(r'(?:(?:encoder|decoder)/)?layers(?:_\d+)?/(.*)/kernel')
    inside = {path: found for path in linear if (found := layer.fullmatch(path))}
    assert {found[1] for found in inside.values()} == expected(variant)
    assert linear - set(inside) == {f'{name}/kernel' for name in BETWEEN.get(variant, ())}
    # Every matrix of a layer is among them.
    of_layers = {
        path
        for path, site in model.sites.weights.items()
        if layer.fullmatch(path) and not site.vector
    }
    assert of_layers == set(inside)


@pytest.mark.parametrize('form', MODELS)
def test_all_linear_of_the_contract_models(form):
    model = MODELS[form]()
    linear = {site.path for site in model.sites.match_weights('all-linear')}
    assert linear == {
        path
        for path, site in model.sites.weights.items()
        if path.startswith('layers') and not site.vector
    }


def test_a_backbone_has_no_head():
    model = peftjax.load(GOLDEN / 'tiny_vit' / 'base', abstract=True)
    assert not any('classifier' in path for path in model.sites.weights)
    assert len(model.sites.match_weights('all-linear')) == 6


def wrapped(module, x):
    return peftjax.wrap(module, jax.eval_shape(module.init, KEY, x)['params'], x)


def linear_of(module, x=X):
    return [site.path for site in wrapped(module, x).sites.match_weights('all-linear')]


def test_numbers_of_single_matrices_are_no_layers():
    perceptron = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(8), nn.relu, nn.Dense(3)])
    assert linear_of(perceptron) == ['layers_0/kernel', 'layers_2/kernel']


class Shared(nn.Module):
    """One layer, used three times, and a head behind it if there is one."""

    head: bool

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name='layer')
        for _ in range(3):
            x = layer(x)
        return nn.Dense(2, name='top')(x) if self.head else x


@pytest.mark.parametrize('head', [True, False])
def test_a_layer_that_is_used_again_is_no_head(head):
    assert linear_of(Shared(head)) == ['layer/kernel']


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(4, name='down')(nn.relu(nn.Dense(6, name='up')(x)))


class OneLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Block(name='block_0')(x)


def test_the_only_layer_of_a_backbone():
    assert linear_of(OneLayer()) == ['block_0/down/kernel', 'block_0/up/kernel']


class HeadOfTwo(nn.Module):
    @nn.compact
    def __call__(self, x):
        for layer in range(2):
            x = Block(name=f'block_{layer}')(x)
        return Block(name='top')(nn.Dense(4, name='pooler')(x))


def test_a_head_is_a_whole_module():
    found = linear_of(HeadOfTwo())
    assert found == [f'block_{n}/{way}/kernel' for n in (0, 1) for way in ('down', 'up')] + [
        'pooler/kernel'
    ]


def test_a_recurrent_cell_is_no_head():
    found = linear_of(nn.RNN(nn.SimpleCell(5)), jnp.ones((2, 3, 4)))
    assert sorted(found) == ['cell/h/kernel', 'cell/i/kernel']


def unfollowed(p, x):
    return (x @ p['w']) @ (p['top'] / jnp.linalg.norm(p['top']))


def test_a_head_that_cannot_be_followed_is_the_head_all_the_same():
    model = function(unfollowed, X, w=jnp.ones((4, 6)), top=jnp.ones((6, 2)))
    assert [site.path for site in model.sites.match_weights('all-linear')] == ['w']


def test_all_linear_with_others():
    sites = MODELS['linen scanned']().sites
    alone = sites.match_weights('all-linear')
    more = sites.match_weights(['all-linear', 'embed'])
    assert len(more) == len(alone) + 1
    assert sites.match_leaves('all-linear') == [site.path for site in alone]
    less = sites.match_weights(peftjax.targets('all-linear', exclude=['up', 'down']))
    assert len(less) == len(alone) - 2
    only = function(lambda p, x: x @ p['w'], X, w=jnp.ones((4, 3)))
    assert_raises(
        peftjax.TargetError, lambda: only.sites.match_weights('all-linear'), "'all-linear'"
    )


def test_a_method_on_all_linear_merges_to_what_it_computes():
    model = MODELS['linen looped']()
    tx = peftjax.lora(rank=2, targets='all-linear')
    adapter, frozen = tx.init(KEY, model)
    adapter = peftjax.testing.perturb(adapter, 0)
    found = peftjax.adapt(model, tx)(adapter, frozen, IDS)
    merged = jax.jit(model.apply)(tx.merge(adapter, frozen), IDS)
    assert float(jnp.abs(found - merged).max()) < 1e-5 * float(jnp.abs(merged).max())


# --- exceptions and counts ----------------------------------------------------------------------


def test_exclude():
    sites = MODELS['linen scanned']().sites
    found = sites.match_weights(peftjax.targets(r'layers/.*', exclude=[r'.*/attention/.*', 'up']))
    assert [site.path for site in found] == ['layers/down/kernel']
    # A norm has no matrix. To exclude it changes nothing, and is no mistake.
    assert len(sites.match_weights(peftjax.targets('all-linear', exclude=['norm']))) == 6
    leaves = sites.match_leaves(peftjax.targets(r'.*/bias', exclude=r'.*/attention/.*'))
    assert leaves == ['layers/down/bias', 'layers/norm/bias', 'layers/up/bias']
    cores = MODELS['linen looped']().sites.match_modules(
        peftjax.targets(['core'], exclude=r'layers_0/.*', expect=1)
    )
    assert [site.path for site in cores] == ['layers_1/core']


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
        (peftjax.targets(r'hidden', exclude=r'.*'), ('leaves nothing', 'hidden/kernel')),
        (peftjax.targets(r'.*', expect=1), ('matches 2 and not 1', 'hidden/kernel', 'out/kernel')),
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


# --- layers of a stack --------------------------------------------------------------------------


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


# --- arguments by their names elsewhere ---------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'arguments', 'said'),
    [
        ('lora', {'r': 8, 'targets': 'a'}, ['lora: write rank=... in place of r=...']),
        (
            'lora',
            {'r': 8, 'lora_alpha': 16, 'lora_dropout': 0.1, 'target_modules': ['q']},
            ['rank=...', 'alpha=... in place of lora_alpha', 'dropout=...', 'targets=... in place'],
        ),
        ('adalora', {'r': 8, 'targets': 'a'}, ['init_rank=... in place of r=...']),
        ('ia3', {'target_modules': 'a'}, ['targets=... in place of target_modules=...']),
        ('ia3', {'targets': 'a', 'r': 8}, ["'feedforward'", 'and no r=...']),
        (
            'lora',
            {'rank': 2, 'targets': 'a', 'modules_to_save': ['classifier']},
            ['peftjax.chain(lora(...), peftjax.select(...))', 'in place of modules_to_save=...'],
        ),
        ('dora', {'rank': 2, 'exclude_modules': 'a'}, ['peftjax.targets(..., exclude=...)']),
        ('lora', {'rank': 2, 'targets': 'a', 'use_dora': True}, ['peftjax.dora(...)']),
        (
            'lora',
            {'rank': 2, 'targets': 'a', 'target': 'b'},
            ["keyword argument 'target'; lora takes rank, targets, alpha"],
        ),
    ],
)
def test_names_of_arguments_elsewhere(name, arguments, said):
    assert_raises(TypeError, lambda: getattr(peftjax, name)(**arguments), *said)


def test_arguments_without_names():
    untyped: Any = peftjax
    for act, said in (
        (lambda: untyped.lora(8, 'a'), 'write lora(rank=..., targets=...)'),
        (lambda: untyped.full(jnp.float32), 'write full(dtype=...)'),
        (lambda: untyped.fish_mask({'w': [0]}, 1), 'takes 1 positional arguments, found 2'),
    ):
        assert_raises(TypeError, act, said)


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
