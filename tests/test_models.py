"""The model families: equal to transformers, and equal to themselves however they are built."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.core import paths
from peftjax.models.attention import AttentionCore
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig
from peftjax.models.gemma import Gemma
from peftjax.models.gpt2 import GPT2
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.stack import stack_layers, unstack_layers
from tests.checkpoint_files import golden
from tests.compiled import flops
from tests.linen import applied
from tests.tiny_models import BERT, FAMILIES, GEMMA, GPT, IDS, LLAMA, ROBERTA, initialised, run


@pytest.mark.sampled
@pytest.mark.parametrize(
    ('scan', 'remat'), [(True, 'full'), (False, None), (False, 'dots_saveable')]
)
@pytest.mark.parametrize(
    ('family', 'config'),
    FAMILIES,
)
def test_remat_and_scan_change_neither_values_nor_gradients(family, config, scan, remat):
    plain = family(config)
    variables = initialised(plain)
    other = family(config, scan=scan, remat=remat)
    params = variables['params'] if scan else unstack_layers(variables['params'])

    def loss(module, params):
        return jnp.square(
            jax.tree.leaves(module.apply({'params': params}, input_ids=IDS))[0]
        ).mean()

    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(plain, p)))(variables['params'])
    other_value, other_gradient = jax.jit(jax.value_and_grad(lambda p: loss(other, p)))(params)
    np.testing.assert_allclose(value, other_value, rtol=1e-6)
    other_gradient = other_gradient if scan else stack_layers(other_gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient,
        other_gradient,
    )


def test_stack_layers_undoes_unstack_layers():
    params = initialised(Llama(LLAMA))['params']
    looped = unstack_layers(params)
    shapes = jax.eval_shape(Llama(LLAMA, scan=False).init, jax.random.key(0), input_ids=IDS)
    assert jax.tree.map(jnp.shape, looped) == jax.tree.map(jnp.shape, shapes['params'])
    jax.tree.map(np.testing.assert_array_equal, params, stack_layers(looped))


def test_unknown_remat_is_refused_by_name():
    with pytest.raises(ValueError, match="remat 'most' is unknown"):
        initialised(Bert(BERT, remat='most'))


@pytest.mark.parametrize(
    'module',
    [Bert(BERT), Bert(ROBERTA), Llama(LLAMA), Gemma(GEMMA), GPT2(GPT)],
    ids=['bert', 'roberta', 'llama', 'gemma', 'gpt2'],
)
def test_padding_changes_no_other_position(module):
    variables = initialised(module)
    short = jax.tree.leaves(run(module, variables, input_ids=IDS[:, :6]))[0]
    mask = np.array([[1] * 6 + [0] * 3] * 2)
    ids = np.where(mask == 1, IDS, 1)  # what RoBERTa's padding is
    padded = jax.tree.leaves(run(module, variables, input_ids=ids, attention_mask=mask))[0]
    np.testing.assert_allclose(padded[:, :6], short, atol=1e-5)


@pytest.mark.parametrize('pooling', ['first', 'mean'])
def test_a_row_of_padding_gives_no_nan(pooling):
    module = Bert(BERT, outputs=2, pooling=pooling)
    variables = initialised(module)

    def loss(variables):
        mask = np.array([[1] * 9, [0] * 9])
        return run(module, variables, input_ids=IDS, attention_mask=mask).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((value, gradient)))


def test_mean_pooling_averages_tokens_only():
    module = Bert(BERT, pooling='mean')
    variables = initialised(module)
    assert 'pooler' not in variables['params']
    mask = np.array([[1] * 9, [1] * 4 + [0] * 5])
    hidden, pooled = run(module, variables, input_ids=IDS, attention_mask=mask)
    np.testing.assert_allclose(pooled[1], hidden[1, :4].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'module', [Llama(LLAMA), Gemma(GEMMA), GPT2(GPT)], ids=['llama', 'gemma', 'gpt2']
)
def test_packed_rows_equal_separate_ones(module):
    variables = initialised(module)
    separate = [run(module, variables, input_ids=IDS[:1, a:b])[0] for a, b in ((0, 4), (4, 9))]
    segments = np.array([[1] * 4 + [2] * 5])
    packed = run(module, variables, input_ids=IDS[:1], segment_ids=segments)
    np.testing.assert_allclose(packed[0], np.concatenate(separate), atol=1e-5)


def test_dropout_is_off_unless_asked_for():
    module = Bert(BERT, outputs=2)
    variables = initialised(module)
    quiet = run(module, variables, input_ids=IDS)

    @jax.jit
    def noisy(key):
        return module.apply(variables, input_ids=IDS, deterministic=False, rngs={'dropout': key})

    drop = [noisy(jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drop[0], drop[1])
    assert not np.allclose(drop[0], quiet) and not np.allclose(drop[0], drop[2])


@pytest.mark.parametrize(
    ('family', 'config'),
    FAMILIES,
)
def test_bfloat16_computes_and_stores_in_bfloat16(family, config):
    module = family(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    variables = initialised(module)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.bfloat16)}
    output = jax.tree.leaves(run(module, variables, input_ids=IDS))[0]
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
    exact = jax.tree.leaves(run(family(config), wide, input_ids=IDS))[0]
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(jnp.float32), exact, atol=0.1)


@pytest.mark.parametrize(
    ('family', 'config'),
    FAMILIES,
)
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
def test_interceptors_see_every_attention_core(family, config, scan):
    seen = []

    def interceptor(call, args, kwargs, context):
        if isinstance(context.module, AttentionCore):
            seen.append('/'.join(context.module.path))
        return call(*args, **kwargs)

    module = family(config, scan=scan)
    variables = initialised(module)
    with nn.intercept_methods(interceptor):
        jax.eval_shape(lambda: module.apply(variables, input_ids=IDS))
    block = {Bert: 'attention', Llama: 'self_attn', Gemma: 'self_attn', GPT2: 'attn'}[family]
    layers = ['layers'] if scan else [f'layers_{index}' for index in range(2)]
    assert sorted(set(seen)) == [f'{layer}/{block}/core' for layer in layers]


def test_dropout_keeps_gemmas_bounded_scores():
    variables = initialised(Gemma(GEMMA))
    rare = Gemma(dataclasses.replace(GEMMA, attention_dropout=1e-9))
    noisy = applied(
        rare, variables, input_ids=IDS, deterministic=False, rngs={'dropout': jax.random.key(0)}
    )
    np.testing.assert_allclose(noisy, run(Gemma(GEMMA), variables, input_ids=IDS), atol=1e-5)
    free = Gemma(dataclasses.replace(GEMMA, attn_logit_softcapping=None))
    assert not np.allclose(run(free, variables, input_ids=IDS), noisy, atol=1e-3)


def test_key_value_heads_are_not_repeated():
    shapes = jax.eval_shape(Llama(LLAMA).init, jax.random.key(0), input_ids=IDS)
    text = str(jax.make_jaxpr(lambda v: Llama(LLAMA).apply(v, input_ids=IDS))(shapes))
    assert 'f32[2,9,2,4]' in text  # keys and values [B, T, K, H]
    assert 'f32[2,9,2,2,4]' in text  # queries, grouped by the head they share
    config, _, _, _ = golden('llama')
    assert config['num_attention_heads'] == 2 * config['num_key_value_heads']


def matmul_flops(kernels, tokens, pairs, width):
    return 2 * tokens * kernels + 4 * pairs * width


@pytest.mark.parametrize('family', [Bert, Llama])
def test_compiled_flops_match_a_hand_count(family):
    batch, length, width, layers = 2, 64, 256, 1
    sizes: dict[str, Any] = {
        'vocab_size': 256,
        'hidden_size': width,
        'num_hidden_layers': layers,
        'num_attention_heads': 4,
        'intermediate_size': 1024,
    }
    if family is Llama:
        module = Llama(LlamaConfig(**sizes, num_key_value_heads=2, head_dim=64), scan=False)
    else:
        module = Bert(BertConfig(**sizes), scan=False)
    ids = jnp.ones((batch, length), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), input_ids=ids)
    compiled = jax.jit(lambda v: module.apply(v, input_ids=ids)).lower(shapes).compile()
    leaves = paths.flatten(shapes['params'])
    kernels = sum(v.size for k, v in leaves.items() if k.endswith('kernel') and 'pooler' not in k)
    expected = matmul_flops(kernels, batch * length, layers * batch * length**2, width)
    measured = flops(compiled)
    # Elementwise work (norms, softmax, masks, rotation, activation) comes on top.
    assert expected <= measured <= 1.08 * expected, measured / expected


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        ({'input_ids': IDS[0]}, 'input_ids must be integers'),
        ({'input_ids': IDS.astype(np.float32)}, 'input_ids must be integers'),
        ({'input_ids': IDS, 'attention_mask': IDS[:, :5]}, r'attention_mask must be \[2, 9\]'),
        ({'input_ids': np.ones((1, 13), np.int32)}, '13 tokens: this checkpoint has 12'),
    ],
)
@pytest.mark.parametrize('config', [BERT, ROBERTA], ids=['bert', 'roberta'])
def test_wrong_inputs_are_refused_by_name(config, inputs, message):
    variables = initialised(Bert(config))
    with pytest.raises(ValueError, match=message):
        Bert(config).apply(variables, **inputs)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'hidden_act': 'mish'}, "hidden_act 'mish'"),
        ({'num_key_value_heads': 3}, 'num_attention_heads 4 is not a multiple'),
        ({'head_dim': 3}, 'head_dim 3 is odd'),
    ],
)
def test_impossible_configs_are_refused(change, message):
    fields = {field: getattr(LLAMA, field) for field in LLAMA.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**fields | change)
