"""The Llama decoder: grouped-query attention, rotary positions, RMS norm, SwiGLU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from peftjax.models import names
from peftjax.models.attention import (
    AttentionCore,
    Branch,
    activation,
    causal_mask,
    check_token_inputs,
    merge_heads,
    padding_mask,
    segment_mask,
    segment_positions,
    split_heads,
)
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.rope import rotate, rotation
from peftjax.models.stack import apply_stack


class _Part(nn.Module):
    """What every part of the decoder is told."""

    config: LlamaConfig
    deterministic: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    def dense(self, features: int, name: str, use_bias: bool) -> nn.Dense:
        return nn.Dense(
            features, use_bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def norm(self, name: str) -> nn.Module:
        return RMSNorm(self.config.rms_norm_eps, self.dtype, self.param_dtype, name=name)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · scale over the last axis, in float32 whatever the dtype of x.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    epsilon: float
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, x.shape[-1:], self.param_dtype)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
        return (wide * inverse * scale).astype(self.dtype)


class _SelfAttention(_Part):
    @nn.compact
    def __call__(self, x, mask, cos, sin):
        config = self.config
        heads, shared, width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        query = split_heads(self.dense(heads * width, 'q_proj', config.qkv_bias)(x), heads)
        key = split_heads(self.dense(shared * width, 'k_proj', config.qkv_bias)(x), shared)
        value = split_heads(self.dense(shared * width, 'v_proj', config.qkv_bias)(x), shared)
        core = AttentionCore(config.attention_dropout, name='core')
        attended = core(
            rotate(query, cos, sin), rotate(key, cos, sin), value, mask, self.deterministic
        )
        return self.dense(config.hidden_size, 'o_proj', config.o_bias)(merge_heads(attended))


class _MLP(_Part):
    @nn.compact
    def __call__(self, x):
        config = self.config
        gate = self.dense(config.intermediate_size, 'gate_proj', config.mlp_bias)(x)
        up = self.dense(config.intermediate_size, 'up_proj', config.mlp_bias)(x)
        hidden = activation(config.hidden_act)(gate) * up
        return self.dense(config.hidden_size, 'down_proj', config.mlp_bias)(hidden)


class _Layer(_Part):
    @nn.compact
    def __call__(self, x, mask, cos, sin):
        fields = self.config, self.deterministic, self.dtype, self.param_dtype
        attention = _SelfAttention(*fields, name='self_attn')
        attended = attention(self.norm('input_layernorm')(x), mask, cos, sin)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        hidden = _MLP(*fields, name='mlp')(self.norm('post_attention_layernorm')(x))
        return x + Branch(name='mlp_branch')(x, hidden, x + hidden), None


class Llama(nn.Module):
    """A causal language model of the Llama family: logits [B, T, V].

    The head is `lm_head`, or the embedding itself where the config ties the two.
    scan, remat: see `apply_stack`. dtype: of the computation; param_dtype: of the leaves.

    Inputs are keyword arguments: input_ids [B, T]; attention_mask [B, T], 1 for tokens and 0 for
    padding; segment_ids [B, T] for packed rows: attention stays inside a segment and positions
    restart with it; position_ids [B, T] overrides the positions; deterministic=False turns the
    attention dropout of the config on and needs `rngs={'dropout': key}`.

    Example:
        >>> config = LlamaConfig(
        ...     vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=4, num_key_value_heads=2, head_dim=4)
        >>> model, ids = Llama(config), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids)
        >>> model.apply(variables, input_ids=ids).shape
        (2, 5, 50)

    Source: Touvron et al. 2023, https://arxiv.org/abs/2302.13971.
    """

    config: LlamaConfig
    scan: bool = True
    remat: str | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        check_token_inputs(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
        )
        config, length = self.config, input_ids.shape[1]
        mask = causal_mask(length, config.sliding_window)
        if attention_mask is not None:
            mask = mask & padding_mask(attention_mask)
        if segment_ids is not None:
            mask = mask & segment_mask(segment_ids)
        if position_ids is None:
            position_ids = (
                jnp.arange(length)[None] if segment_ids is None else segment_positions(segment_ids)
            )
        embed = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='embed_tokens',
        )
        x = apply_stack(
            _Layer,
            {
                'config': config,
                'deterministic': deterministic,
                'dtype': self.dtype,
                'param_dtype': self.param_dtype,
            },
            embed(input_ids),
            mask,
            # Once for all layers: outside the scan, so that they are not computed again in each.
            *rotation(config.rope, position_ids, config.head_dim),
            count=config.num_hidden_layers,
            scan=self.scan,
            remat=self.remat,
        )
        x = RMSNorm(config.rms_norm_eps, self.dtype, self.param_dtype, name='norm')(x)
        if config.tie_word_embeddings:
            return embed.attend(x)
        return nn.Dense(
            config.vocab_size,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='lm_head',
        )(x)


_LAYER = 'layers.{layer}'
LLAMA_NAMES = (
    *names.embedding('embed_tokens', 'embed_tokens'),
    *names.norm(f'{_LAYER}.input_layernorm', 'layers/input_layernorm'),
    *names.dense(f'{_LAYER}.self_attn.q_proj', 'layers/self_attn/q_proj'),
    *names.dense(f'{_LAYER}.self_attn.k_proj', 'layers/self_attn/k_proj'),
    *names.dense(f'{_LAYER}.self_attn.v_proj', 'layers/self_attn/v_proj'),
    *names.dense(f'{_LAYER}.self_attn.o_proj', 'layers/self_attn/o_proj'),
    *names.norm(f'{_LAYER}.post_attention_layernorm', 'layers/post_attention_layernorm'),
    *names.dense(f'{_LAYER}.mlp.gate_proj', 'layers/mlp/gate_proj'),
    *names.dense(f'{_LAYER}.mlp.up_proj', 'layers/mlp/up_proj'),
    *names.dense(f'{_LAYER}.mlp.down_proj', 'layers/mlp/down_proj'),
    *names.norm('norm', 'norm'),
    *names.dense('lm_head', 'lm_head'),
)
