"""The layers of Whisper's encoder and decoder."""

from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from peftjax.models.attention import AttentionCore, Branch, activation, merge_heads, split_heads
from peftjax.models.cache import extend
from peftjax.models.norms import LayerNorm
from peftjax.models.whisper_config import WhisperConfig


class Part(nn.Module):
    """The fields of every part."""

    config: WhisperConfig
    deterministic: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    @property
    def fields(self) -> dict[str, Any]:
        names_of = ('config', 'deterministic', 'dtype', 'param_dtype')
        return {name: getattr(self, name) for name in names_of}

    def dense(self, features: int, name: str, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(
            features, use_bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm(1e-5, self.dtype, self.param_dtype, name=name)

    def embed(self, rows: int, name: str) -> nn.Embed:
        return nn.Embed(
            rows, self.config.d_model, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def dropout(self, x: jax.Array, rate: float, name: str = 'dropout') -> jax.Array:
        return nn.Dropout(rate, deterministic=self.deterministic, name=name)(x)


class _Attention(Part):
    """Self-attention, which extends `past` at slot `length`; or cross-attention if `crosses`."""

    heads: int = 1
    crosses: bool = False

    @nn.compact
    def __call__(self, x, source, mask, past, length):
        config = self.config
        query = split_heads(self.dense(config.d_model, 'q_proj')(x), self.heads)
        if past is not None and self.crosses:
            key, value = past
        else:
            key = split_heads(self.dense(config.d_model, 'k_proj', False)(source), self.heads)
            value = split_heads(self.dense(config.d_model, 'v_proj')(source), self.heads)
            key, value = extend(past, key, value, length)
        core = AttentionCore(config.attention_dropout, name='core')
        attended = merge_heads(core(query, key, value, mask, self.deterministic))
        attended = self.dense(config.d_model, 'out_proj')(attended)
        return self.dropout(attended, config.dropout), (key, value)


class _FeedForward(Part):
    width: int = 1

    @nn.compact
    def __call__(self, x):
        config = self.config
        hidden = activation(config.activation_function)(self.dense(self.width, 'fc1')(x))
        hidden = self.dropout(hidden, config.activation_dropout, 'dropout_inner')
        return self.dropout(self.dense(config.d_model, 'fc2')(hidden), config.dropout)


class EncoderLayer(Part):
    @nn.compact
    def __call__(self, x, _):
        config, normed = self.config, self.norm('self_attn_layer_norm')(x)
        attention = _Attention(
            **self.fields, heads=config.encoder_attention_heads, name='self_attn'
        )
        attended, _ = attention(normed, normed, None, None, None)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        feed = _FeedForward(**self.fields, width=config.encoder_ffn_dim, name='ffn')
        hidden = feed(self.norm('ffn_layer_norm')(x))
        return x + Branch(name='ffn_branch')(x, hidden, x + hidden), None


class DecoderLayer(Part):
    keeps: bool = False

    @nn.compact
    def __call__(self, x, past, mask, encoded, length):
        config, heads = self.config, self.config.decoder_attention_heads
        own, read = (None, None) if past is None else (past[:2], past[2:])
        normed = self.norm('self_attn_layer_norm')(x)
        attention = _Attention(**self.fields, heads=heads, name='self_attn')
        attended, present = attention(normed, normed, mask, own, length)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        crossing = _Attention(**self.fields, heads=heads, crosses=True, name='cross_attn')
        crossed, kept = crossing(self.norm('cross_attn_layer_norm')(x), encoded, None, read, length)
        x = x + Branch(name='cross_attn_branch')(x, crossed, x + crossed)
        feed = _FeedForward(**self.fields, width=config.decoder_ffn_dim, name='ffn')
        hidden = feed(self.norm('ffn_layer_norm')(x))
        x = x + Branch(name='ffn_branch')(x, hidden, x + hidden)
        return x, (*present, *kept) if self.keeps else None
