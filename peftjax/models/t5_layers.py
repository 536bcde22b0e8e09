"""The layers of T5's encoder and decoder, and the relative position bias that a stack shares."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from peftjax.models.attention import AttentionCore, Branch, activation, merge_heads, split_heads
from peftjax.models.cache import extend
from peftjax.models.norms import RMSNorm
from peftjax.models.relative import relative_buckets
from peftjax.models.stack import apply_stack
from peftjax.models.t5_config import T5Config


class _Part(nn.Module):
    """The fields of every part."""

    config: T5Config
    deterministic: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    @property
    def fields(self) -> tuple:
        return self.config, self.deterministic, self.dtype, self.param_dtype

    def dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, False, dtype=self.dtype, param_dtype=self.param_dtype, name=name)

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.config.layer_norm_epsilon, self.dtype, self.param_dtype, name=name)

    def dropout(self, x: jax.Array, name: str = 'dropout') -> jax.Array:
        rate = self.config.dropout_rate
        return nn.Dropout(rate, deterministic=self.deterministic, name=name)(x)


class _Attention(_Part):
    """Self-attention, which extends `past` at slot `length`; or cross-attention if `crosses`."""

    crosses: bool = False

    @nn.compact
    def __call__(self, x, source, mask, bias, ahead, past, length):
        config = self.config
        inner, heads = config.num_heads * config.d_kv, config.num_heads
        query = split_heads(self.dense(inner, 'q')(x), heads)
        if past is not None and self.crosses:
            key, value = past
        else:
            key, value = (split_heads(self.dense(inner, name)(source), heads) for name in 'kv')
            key, value = extend(past, key, value, length)
        core = AttentionCore(config.dropout_rate, name='core')
        # T5 does not scale its scores, so this undoes the division in the core.
        query = query * math.sqrt(config.d_kv)
        attended = core(query, key, value, mask, self.deterministic, bias, ahead)
        return self.dropout(self.dense(config.d_model, 'o')(merge_heads(attended))), (key, value)


class _FeedForward(_Part):
    @nn.compact
    def __call__(self, x):
        config, function = self.config, activation(self.config.activation)
        if config.gated:
            hidden = function(self.dense(config.d_ff, 'wi_0')(x)) * self.dense(config.d_ff, 'wi_1')(
                x
            )
        else:
            hidden = function(self.dense(config.d_ff, 'wi')(x))
        return self.dropout(self.dense(config.d_model, 'wo')(self.dropout(hidden, 'dropout_inner')))


class _EncoderLayer(_Part):
    @nn.compact
    def __call__(self, x, _, mask, bias, ahead):
        normed = self.norm('self_attn_layer_norm')(x)
        attention = _Attention(*self.fields, name='self_attn')
        attended, _ = attention(normed, normed, mask, bias, ahead, None, None)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        hidden = _FeedForward(*self.fields, name='ffn')(self.norm('ffn_layer_norm')(x))
        return x + Branch(name='ffn_branch')(x, hidden, x + hidden), None


class _DecoderLayer(_Part):
    keeps: bool = False

    @nn.compact
    def __call__(self, x, past, mask, bias, ahead, encoded, encoded_mask, length):
        own, read = (None, None) if past is None else (past[:2], past[2:])
        normed = self.norm('self_attn_layer_norm')(x)
        attention = _Attention(*self.fields, name='self_attn')
        attended, present = attention(normed, normed, mask, bias, ahead, own, length)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        crossed, kept = _Attention(*self.fields, crosses=True, name='cross_attn')(
            self.norm('cross_attn_layer_norm')(x), encoded, encoded_mask, None, None, read, length
        )
        x = x + Branch(name='cross_attn_branch')(x, crossed, x + crossed)
        hidden = _FeedForward(*self.fields, name='ffn')(self.norm('ffn_layer_norm')(x))
        x = x + Branch(name='ffn_branch')(x, hidden, x + hidden)
        return x, (*present, *kept) if self.keeps else None


def _first(mask):
    """int32 [B or 1, 1]: the position of the first token of each row; 0 where there is none."""
    if mask.valid is None:
        return jnp.zeros((1, 1), jnp.int32)
    return jnp.argmax(mask.valid, axis=1, keepdims=True).astype(jnp.int32)


class Stack(_Part):
    """The encoder or the decoder: its layers, the bias that they share, and a last norm."""

    layers: int
    decodes: bool
    scan: bool
    remat: str | None
    keeps: bool = False

    @nn.compact
    def __call__(self, x, mask, *shared, query=None, keys=None, past=None, prefix=0):
        """Runs `x`.

        query, keys: positions; the default is those of `x`. prefix: how many keys a method puts at
        the positions before the first token of each row.
        """
        config = self.config
        query = jnp.arange(x.shape[1]) if query is None else query
        keys = query if keys is None else keys
        table = nn.Embed(
            config.relative_attention_num_buckets,
            config.num_heads,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='relative_attention_bias',
        )

        def bias(keys):
            """[B or 1, N, T, S] for keys at the positions [B or 1, S]."""
            buckets = relative_buckets(
                keys[:, None, :] - query[None, :, None],
                config.relative_attention_num_buckets,
                config.relative_attention_max_distance,
                both_ways=not self.decodes,
            )
            return jnp.moveaxis(table(buckets), -1, 1)

        fields = {
            'config': config,
            'deterministic': self.deterministic,
            'dtype': self.dtype,
            'param_dtype': self.param_dtype,
        }
        x, present = apply_stack(
            _DecoderLayer if self.decodes else _EncoderLayer,
            {**fields, 'keeps': self.keeps} if self.decodes else fields,
            self.dropout(x),
            mask,
            bias(keys[None]),
            bias(_first(mask) + jnp.arange(-prefix, 0)[None]) if prefix else None,
            *shared,
            count=self.layers,
            scan=self.scan,
            remat=self.remat,
            own=past,
        )
        return self.dropout(self.norm('final_layer_norm')(x), 'dropout_final'), present
