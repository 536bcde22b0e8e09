"""The Llama decoder: grouped-query attention, rotary positions, RMS norm, SwiGLU."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from peftjax.core.roles import Roles
from peftjax.models import cache as caches
from peftjax.models import names
from peftjax.models.attention import (
    AttentionCore,
    Branch,
    activation,
    check_token_inputs,
    merge_heads,
    split_heads,
)
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.norms import RMSNorm
from peftjax.models.read_out import read_out
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


class _SelfAttention(_Part):
    @nn.compact
    def __call__(self, x, mask, cos, sin, past, length):
        config = self.config
        heads, shared, width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        query = split_heads(self.dense(heads * width, 'q_proj', config.qkv_bias)(x), heads)
        key = split_heads(self.dense(shared * width, 'k_proj', config.qkv_bias)(x), shared)
        value = split_heads(self.dense(shared * width, 'v_proj', config.qkv_bias)(x), shared)
        if config.qk_norm:
            query, key = self.norm('q_norm')(query), self.norm('k_norm')(key)
        core = AttentionCore(config.attention_dropout, name='core')
        present = caches.extend(past, rotate(key, cos, sin), value, length)
        attended = core(rotate(query, cos, sin), *present, mask, self.deterministic)
        output = self.dense(config.hidden_size, 'o_proj', config.o_bias)(merge_heads(attended))
        return output, present


class _MLP(_Part):
    @nn.compact
    def __call__(self, x):
        config = self.config
        gate = self.dense(config.intermediate_size, 'gate_proj', config.mlp_bias)(x)
        up = self.dense(config.intermediate_size, 'up_proj', config.mlp_bias)(x)
        hidden = activation(config.hidden_act)(gate) * up
        return self.dense(config.hidden_size, 'down_proj', config.mlp_bias)(hidden)


class _Layer(_Part):
    keeps: bool = False

    @nn.compact
    def __call__(self, x, past, mask, length, cos, sin):
        fields = self.config, self.deterministic, self.dtype, self.param_dtype
        attention = _SelfAttention(*fields, name='self_attn')
        attended, present = attention(self.norm('input_layernorm')(x), mask, cos, sin, past, length)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        hidden = _MLP(*fields, name='mlp')(self.norm('post_attention_layernorm')(x))
        x = x + Branch(name='mlp_branch')(x, hidden, x + hidden)
        return x, present if self.keeps else None


class Llama(nn.Module):
    """A causal language model of the Llama family: logits [B, T, V].

    The head is `lm_head`, or the embedding itself where the config ties the two.
    scan, remat: see `apply_stack`. dtype: of the computation; param_dtype: of the leaves.

    Inputs are keyword arguments: input_ids [B, T]; attention_mask [B, T], 1 for tokens and 0 for
    padding; segment_ids [B, T] for packed rows: attention stays inside a segment and positions
    restart with it; position_ids [B, T] overrides the positions; deterministic=False turns the
    attention dropout of the config on and needs `rngs={'dropout': key}`.

    cache_length=S makes this the first call of several: it returns the logits of the last token,
    [B, 1, V], and a `Cache` of S slots. cache=that, in place of attention_mask and segment_ids,
    lets input_ids [B, T] follow it: logits [B, T, V], and the cache with them.

    targets [B, T], the token that each position should predict, returns `TokenScores` in place of
    logits: each one's cross-entropy, and whether it is the likeliest. Few logits are ever held.

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

    peftjax_roles: ClassVar[Roles] = Roles(
        token_ids='input_ids',
        mask='attention_mask',
        positions='position_ids',
        segments='segment_ids',
        targets='targets',
        cache='cache',
        cache_length='cache_length',
        embedding=r'embed_tokens',
        attention=r'.*/core',
        residual_end=r'.*branch',
    )

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
        cache_length: int | None = None,
        cache: caches.Cache | None = None,
        targets: jax.Array | None = None,
    ) -> Any:
        given = {
            'attention_mask': attention_mask,
            'position_ids': position_ids,
            'segment_ids': segment_ids,
        }
        check_token_inputs(input_ids, **given, targets=targets)
        config, length = self.config, input_ids.shape[1]
        mask, position_ids = caches.look(length, cache, **given, window=config.sliding_window)
        embed = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='embed_tokens',
        )
        x, present = apply_stack(
            _Layer,
            {
                'config': config,
                'deterministic': deterministic,
                'dtype': self.dtype,
                'param_dtype': self.param_dtype,
                'keeps': cache is not None or cache_length is not None,
            },
            embed(input_ids),
            mask,
            None if cache is None else cache.length,
            # Once for all layers: outside the scan, so that they are not computed again in each.
            *rotation(config.rope, position_ids, config.head_dim),
            count=config.num_hidden_layers,
            scan=self.scan,
            remat=self.remat,
            own=None if cache is None else (cache.keys, cache.values),
        )
        if cache_length is not None:
            x = x[:, -1:]
        x = RMSNorm(config.rms_norm_eps, self.dtype, self.param_dtype, name='norm')(x)
        logits = read_out(x, embed, tied=config.tie_word_embeddings, targets=targets)
        return caches.with_logits(
            logits, present, cache, cache_length, attention_mask, position_ids
        )


_LAYER = 'layers.{layer}'
LLAMA_NAMES = (
    *names.embedding('embed_tokens', 'embed_tokens'),
    *names.norm(f'{_LAYER}.input_layernorm', 'layers/input_layernorm'),
    *names.dense(f'{_LAYER}.self_attn.q_proj', 'layers/self_attn/q_proj'),
    *names.dense(f'{_LAYER}.self_attn.k_proj', 'layers/self_attn/k_proj'),
    *names.dense(f'{_LAYER}.self_attn.v_proj', 'layers/self_attn/v_proj'),
    *names.dense(f'{_LAYER}.self_attn.o_proj', 'layers/self_attn/o_proj'),
    *names.norm(f'{_LAYER}.self_attn.q_norm', 'layers/self_attn/q_norm'),
    *names.norm(f'{_LAYER}.self_attn.k_norm', 'layers/self_attn/k_norm'),
    *names.norm(f'{_LAYER}.post_attention_layernorm', 'layers/post_attention_layernorm'),
    *names.dense(f'{_LAYER}.mlp.gate_proj', 'layers/mlp/gate_proj'),
    *names.dense(f'{_LAYER}.mlp.up_proj', 'layers/mlp/up_proj'),
    *names.dense(f'{_LAYER}.mlp.down_proj', 'layers/mlp/down_proj'),
    *names.norm('norm', 'norm'),
    *names.dense('lm_head', 'lm_head'),
)
