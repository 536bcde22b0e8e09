"""`'all-linear'`: every matrix of the layers, and no head."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import peftjax
from tests.algebra import KEY, X, assert_raises, function, unfollowed
from tests.checkpoint_files import VARIANTS, task_of
from tests.contract_models import IDS, MODELS
from tests.oracle.cases import GOLDEN

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


@pytest.mark.sampled
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
