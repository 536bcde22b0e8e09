"""The T5 encoder and decoder: relative positions, RMS norms in front, no biases, no scale."""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from peftjax.core.masks import Mask
from peftjax.core.roles import Roles
from peftjax.models.attention import (
    AttentionCore,
    Branch,
    activation,
    check_token_inputs,
    is_token,
    merge_heads,
    split_heads,
)
from peftjax.models.cache import extend
from peftjax.models.encoder_decoder_cache import (
    WRITTEN,
    EncoderDecoderCache,
    begin,
    check_follows,
    mask_of_written,
    needed,
)
from peftjax.models.norms import RMSNorm
from peftjax.models.read_out import read_out
from peftjax.models.relative import relative_buckets
from peftjax.models.stack import apply_stack
from peftjax.models.t5_config import T5Config


class _Part(nn.Module):
    """What every part is told."""

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
    """Of the residual itself (`past` goes on, `length` slots filled), or of what was read."""

    crosses: bool = False

    @nn.compact
    def __call__(self, x, source, mask, bias, past, length):
        config = self.config
        inner, heads = config.num_heads * config.d_kv, config.num_heads
        query = split_heads(self.dense(inner, 'q')(x), heads)
        if past is not None and self.crosses:
            key, value = past
        else:
            key, value = (split_heads(self.dense(inner, name)(source), heads) for name in 'kv')
            key, value = extend(past, key, value, length)
        core = AttentionCore(config.dropout_rate, name='core')
        # T5 does not scale its scores; what the core divides by is put in before.
        query = query * math.sqrt(config.d_kv)
        attended = core(query, key, value, mask, self.deterministic, bias)
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
    def __call__(self, x, _, mask, bias):
        normed = self.norm('self_attn_layer_norm')(x)
        attention = _Attention(*self.fields, name='self_attn')
        attended, _ = attention(normed, normed, mask, bias, None, None)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        hidden = _FeedForward(*self.fields, name='ffn')(self.norm('ffn_layer_norm')(x))
        return x + Branch(name='ffn_branch')(x, hidden, x + hidden), None


class _DecoderLayer(_Part):
    keeps: bool = False

    @nn.compact
    def __call__(self, x, past, mask, bias, encoded, encoded_mask, length):
        own, read = (None, None) if past is None else (past[:2], past[2:])
        normed = self.norm('self_attn_layer_norm')(x)
        attention = _Attention(*self.fields, name='self_attn')
        attended, present = attention(normed, normed, mask, bias, own, length)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        crossed, kept = _Attention(*self.fields, crosses=True, name='cross_attn')(
            self.norm('cross_attn_layer_norm')(x), encoded, encoded_mask, None, read, length
        )
        x = x + Branch(name='cross_attn_branch')(x, crossed, x + crossed)
        hidden = _FeedForward(*self.fields, name='ffn')(self.norm('ffn_layer_norm')(x))
        x = x + Branch(name='ffn_branch')(x, hidden, x + hidden)
        return x, (*present, *kept) if self.keeps else None


class _Stack(_Part):
    """One of the two: its layers, the bias that they share, and a norm behind."""

    layers: int
    decodes: bool
    scan: bool
    remat: str | None
    keeps: bool = False

    @nn.compact
    def __call__(self, x, mask, *shared, query=None, keys=None, past=None):
        """`query`, `keys`: positions of each, those of `x` unless given."""
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
        buckets = relative_buckets(
            keys[None, :] - query[:, None],
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
            both_ways=not self.decodes,
        )
        bias = jnp.moveaxis(table(buckets), -1, 0)[None]  # [1, N, T, S]
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
            bias,
            *shared,
            count=self.layers,
            scan=self.scan,
            remat=self.remat,
            own=past,
        )
        return self.dropout(self.norm('final_layer_norm')(x), 'dropout_final'), present


class T5(nn.Module):
    """A T5 encoder and decoder that write: logits [B, T, V].

    The head is the embedding, on states divided by √d_model, or `lm_head` on states as they are;
    the config says which. scan, remat: see `apply_stack`. dtype: of the computation; param_dtype:
    of the leaves.

    Inputs are keyword arguments: input_ids [B, S] and attention_mask [B, S], 1 for tokens and 0 for
    padding, of the text that is read; decoder_input_ids [B, T] and decoder_attention_mask [B, T] of
    the text that is written, which starts with the padding token; deterministic=False turns the
    dropout rate of the config on and needs `rngs={'dropout': key}`.

    cache_length=S makes this the first call of several: it returns the logits of the last token,
    [B, 1, V], and an `EncoderDecoderCache` of S slots. cache=that lets decoder_input_ids [B, T]
    follow it, with nothing to read: logits [B, T, V], and the cache with them.

    targets [B, T], the token that each position should predict, returns `TokenScores` in place of
    logits: each one's cross-entropy, and whether it is the likeliest. Few logits are ever held.

    Example:
        >>> config = T5Config(
        ...     vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4,
        ...     num_decoder_layers=2)
        >>> model, ids = T5(config), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids, decoder_input_ids=ids[:, :3])
        >>> model.apply(variables, input_ids=ids, decoder_input_ids=ids[:, :3]).shape
        (2, 3, 50)

    Source: Raffel et al. 2019, https://arxiv.org/abs/1910.10683, section 2.1; Shazeer 2020,
    https://arxiv.org/abs/2002.05202, for the gated feed-forward of v1.1.
    """

    peftjax_roles: ClassVar[Roles] = Roles(
        token_ids='input_ids',
        mask='attention_mask',
        decoder_ids='decoder_input_ids',
        decoder_mask='decoder_attention_mask',
        targets='targets',
        cache='cache',
        cache_length='cache_length',
        embedding=r'embed',
        attention=r'.*/core',
        residual_end=r'.*branch',
        decoder=r'decoder/.*|lm_head.*',
        crossing=r'decoder/.*/cross_attn/[kv](/.*)?',
    )

    config: T5Config
    scan: bool = True
    remat: str | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        deterministic: bool = True,
        cache_length: int | None = None,
        cache: EncoderDecoderCache | None = None,
        targets: jax.Array | None = None,
    ) -> Any:
        decoder_input_ids = needed('decoder_input_ids', decoder_input_ids, WRITTEN)
        check_token_inputs(
            decoder_input_ids, attention_mask=decoder_attention_mask, targets=targets
        )
        config, length = self.config, decoder_input_ids.shape[1]
        embed = nn.Embed(
            config.vocab_size,
            config.d_model,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='embed',
        )

        def stack(name: str, layers: int) -> _Stack:
            return _Stack(
                config=config,
                deterministic=deterministic,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                layers=layers,
                decodes=name == 'decoder',
                scan=self.scan,
                remat=self.remat,
                keeps=name == 'decoder' and (cache is not None or cache_length is not None),
                name=name,
            )

        decoder = stack('decoder', config.num_decoder_layers)
        if cache is not None:
            check_follows('input_ids', input_ids, cache_length)
            mask, query, slots = cache.follow(length)
            x, present = decoder(
                embed(decoder_input_ids),
                mask,
                None,
                cache.read_mask,
                cache.length,
                query=query,
                keys=slots,
                past=cache[:4],
            )
            return self._read_out(x, embed, targets), cache.grown(present, length)
        input_ids = needed('input_ids', input_ids, 'what is read')
        check_token_inputs(input_ids, attention_mask=attention_mask)
        read = Mask(valid=is_token(attention_mask))
        encoded, _ = stack('encoder', config.num_layers)(embed(input_ids), read)
        written = mask_of_written(decoder_attention_mask)
        x, present = decoder(embed(decoder_input_ids), written, encoded, read, None)
        if cache_length is None:
            return self._read_out(x, embed, targets)
        return self._read_out(x[:, -1:], embed, targets), begin(present, read, cache_length)

    def _read_out(self, x: jax.Array, embed: nn.Embed, targets: jax.Array | None) -> Any:
        config = self.config
        if config.scale_decoder_outputs:
            x = x * config.d_model**-0.5
        return read_out(x, embed, tied=config.tie_word_embeddings, targets=targets)
