"""T5 however it is built, and methods on an encoder and a decoder."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models.attention import AttentionCore
from peftjax.models.relative import relative_buckets
from peftjax.models.t5 import T5
from peftjax.models.t5_config import T5Config, parse_t5
from tests.linen import applied, once

CONFIG = T5Config(
    vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, num_decoder_layers=3
)
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(1, 50, (2, 9)).astype(np.int32)
WRITTEN = RANDOM.integers(1, 50, (2, 7)).astype(np.int32)
INPUTS: dict[str, Any] = {'input_ids': IDS, 'decoder_input_ids': WRITTEN}


@once
def params_of(module):
    shapes = jax.eval_shape(lambda key: module.init(key, **INPUTS), jax.random.key(0))['params']
    generator = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), leaf.dtype), shapes
    )


def _run(module, params, **inputs):
    return jax.jit(lambda params, inputs: module.apply({'params': params}, **inputs))(
        params, {**INPUTS, **inputs}
    )


def looped(params):
    """The stacks' layers one by one."""
    result = dict(params)
    for name in ('encoder', 'decoder'):
        stack = dict(params[name])
        layers = stack.pop('layers')
        for index in range(jax.tree.leaves(layers)[0].shape[0]):
            stack[f'layers_{index}'] = jax.tree.map(lambda leaf, i=index: leaf[i], layers)
        result[name] = stack
    return result


@pytest.mark.parametrize(('scan', 'remat'), [(False, None), (True, 'full'), (False, 'full')])
def test_remat_and_scan_change_nothing(scan, remat):
    params = params_of(T5(CONFIG))
    plain = _run(T5(CONFIG), params)
    other = _run(T5(CONFIG, scan=scan, remat=remat), params if scan else looped(params))
    np.testing.assert_allclose(plain, other, atol=1e-5)


def test_padding_changes_no_other_position_on_either_side():
    module = T5(CONFIG)
    params = params_of(module)
    short = _run(module, params, input_ids=IDS[:, :6], decoder_input_ids=WRITTEN[:, :5])
    masks = {
        'attention_mask': np.array([[1] * 6 + [0] * 3] * 2),
        'decoder_attention_mask': np.array([[1] * 5 + [0] * 2] * 2),
    }
    padded = _run(module, params, **masks)
    np.testing.assert_allclose(padded[:, :5], short, atol=1e-5)


def test_what_is_written_later_is_not_seen():
    module = T5(CONFIG)
    params = params_of(module)
    changed = WRITTEN.copy()
    changed[:, 4:] = 7
    before, after = _run(module, params), _run(module, params, decoder_input_ids=changed)
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert not np.allclose(before[:, 4:], after[:, 4:])


def test_bfloat16_computes_and_stores_in_bfloat16():
    module = T5(CONFIG, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    params = params_of(module)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert _run(module, params).dtype == jnp.bfloat16


def test_dropout_is_on_only_where_asked_for():
    module = T5(CONFIG)
    variables = {'params': params_of(module)}

    @jax.jit
    def noisy(key):
        return applied(module, variables, **INPUTS, deterministic=False, rngs={'dropout': key})

    drops = [noisy(jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drops[0], drops[1])
    assert not np.allclose(drops[0], drops[2])


def test_interceptors_see_every_attention_core():
    seen = set()

    def interceptor(call, args, kwargs, context):
        if isinstance(context.module, AttentionCore):
            seen.add('/'.join(context.module.path))
        return call(*args, **kwargs)

    module = T5(CONFIG)
    with nn.intercept_methods(interceptor):
        jax.eval_shape(lambda: module.apply({'params': params_of(module)}, **INPUTS))
    assert seen == {
        'encoder/layers/self_attn/core',
        'decoder/layers/self_attn/core',
        'decoder/layers/cross_attn/core',
    }


@pytest.mark.parametrize('both_ways', [True, False])
def test_distances_share_buckets_as_the_paper_says(both_ways):
    positions = jnp.arange(300)
    found = np.asarray(
        relative_buckets(positions[None] - positions[:, None], 32, 128, both_ways=both_ways)
    )
    half = 16 if both_ways else 32
    # Near distances on their own, far ones in the last, and never back to a nearer one.
    behind = found[299, ::-1]
    assert behind[: half // 2].tolist() == list(range(half // 2))
    assert set(behind[128:]) == {half - 1} and (np.diff(behind) >= 0).all()
    ahead = found[0, 1:]
    assert ahead.min() >= half if both_ways else set(ahead) == {0}


def test_a_config_says_once_or_twice_whether_states_are_scaled():
    raw = {'model_type': 't5', 'vocab_size': 5, 'd_model': 4, 'd_kv': 2, 'd_ff': 8, 'num_heads': 2}
    raw['num_layers'] = 1
    assert parse_t5(raw).scale_decoder_outputs
    old = parse_t5(raw | {'tie_word_embeddings': False})
    assert not old.scale_decoder_outputs and not old.tie_word_embeddings
    new = parse_t5(raw | {'scale_decoder_outputs': False})
    assert not new.scale_decoder_outputs and new.tie_word_embeddings
    with pytest.raises(ValueError, match="hidden_act 'mish'"):
        parse_t5(raw | {'feed_forward_proj': 'mish'})
    with pytest.raises(ValueError, match='surprise: unknown'):
        parse_t5(raw | {'surprise': 1})


def test_the_decoders_tokens_are_needed():
    with pytest.raises(ValueError, match='decoder_input_ids .* are missing'):
        T5(CONFIG).apply({'params': params_of(T5(CONFIG))}, input_ids=IDS)
