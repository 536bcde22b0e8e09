"""The Whisper encoder and decoder: speech in, as a mel spectrogram, and its words out."""

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
from peftjax.models.norms import LayerNorm
from peftjax.models.read_out import read_out
from peftjax.models.stack import apply_stack
from peftjax.models.whisper_config import WhisperConfig


class _Part(nn.Module):
    """What every part is told."""

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


class _Attention(_Part):
    """Of the residual itself (`past` goes on, `length` slots filled), or of what was read."""

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


class _FeedForward(_Part):
    width: int = 1

    @nn.compact
    def __call__(self, x):
        config = self.config
        hidden = activation(config.activation_function)(self.dense(self.width, 'fc1')(x))
        hidden = self.dropout(hidden, config.activation_dropout, 'dropout_inner')
        return self.dropout(self.dense(config.d_model, 'fc2')(hidden), config.dropout)


class _EncoderLayer(_Part):
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


class _DecoderLayer(_Part):
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


class _Encoder(_Part):
    scan: bool = True
    remat: str | None = None

    @nn.compact
    def __call__(self, input_features):
        config, x = self.config, input_features.swapaxes(1, 2)  # [B, frames, mels]
        for name, stride in (('conv1', 1), ('conv2', 2)):
            convolution = nn.Conv(
                config.d_model,
                (3,),
                strides=stride,
                padding=1,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )
            x = jax.nn.gelu(convolution(x), approximate=False)
        table = self.embed(config.max_source_positions, 'embed_positions')
        x = self.dropout(x + table(jnp.arange(x.shape[1])[None]), config.dropout)
        x, _ = apply_stack(
            _EncoderLayer,
            self.fields,
            x,
            count=config.encoder_layers,
            scan=self.scan,
            remat=self.remat,
        )
        return self.norm('layer_norm')(x)


class _Decoder(_Part):
    scan: bool = True
    remat: str | None = None
    keeps: bool = False

    @nn.compact
    def __call__(self, ids, mask, positions, encoded, length=None, past=None, targets=None):
        """Logits, or scores of targets, and what the layers keep."""
        config = self.config
        tokens = self.embed(config.vocab_size, 'embed_tokens')
        table = self.embed(config.max_target_positions, 'embed_positions')
        x, present = apply_stack(
            _DecoderLayer,
            {**self.fields, 'keeps': self.keeps},
            self.dropout(tokens(ids) + table(positions), config.dropout),
            mask,
            encoded,
            length,
            count=config.decoder_layers,
            scan=self.scan,
            remat=self.remat,
            own=past,
        )
        if self.keeps and past is None:
            x = x[:, -1:]
        x = self.norm('layer_norm')(x)
        return read_out(x, tokens, tied=True, targets=targets), present


class Whisper(nn.Module):
    """A Whisper encoder and decoder that write: logits [B, T, V].

    The head is the decoder's embedding. scan, remat: see `apply_stack`. dtype: of the computation;
    param_dtype: of the leaves.

    Inputs are keyword arguments: input_features, floats [B, mels, frames], twice as many frames as
    the encoder has positions, as the checkpoint's feature extractor makes them of 30 seconds of
    speech; decoder_input_ids [B, T] and decoder_attention_mask [B, T], 1 for tokens and 0 for
    padding, of the text that is written, which starts with the checkpoint's start tokens;
    deterministic=False turns the dropout rates of the config on and needs `rngs={'dropout': key}`.

    cache_length=S makes this the first call of several: it returns the logits of the last token,
    [B, 1, V], and an `EncoderDecoderCache` of S slots. cache=that lets decoder_input_ids [B, T]
    follow it, with nothing to read: logits [B, T, V], and the cache with them.

    targets [B, T], the token that each position should predict, returns `TokenScores` in place of
    logits: each one's cross-entropy, and whether it is the likeliest. Few logits are ever held.

    Raises:
        ValueError: features of another rank, dtype or size; more tokens than positions; a call with
            both a cache and features, or neither.

    Example:
        >>> config = WhisperConfig(
        ...     vocab_size=50, d_model=16, encoder_layers=2, encoder_attention_heads=4,
        ...     encoder_ffn_dim=32, decoder_layers=2, decoder_attention_heads=4,
        ...     decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=6)
        >>> model, ids = Whisper(config), jnp.ones((2, 3), int)
        >>> inputs = {'input_features': jnp.ones((2, 8, 12)), 'decoder_input_ids': ids}
        >>> model.apply(model.init(jax.random.key(0), **inputs), **inputs).shape
        (2, 3, 50)

    Source: Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 2.2.
    """

    peftjax_roles: ClassVar[Roles] = Roles(
        decoder_ids='decoder_input_ids',
        decoder_mask='decoder_attention_mask',
        features='input_features',
        targets='targets',
        cache='cache',
        cache_length='cache_length',
        embedding=r'decoder/embed_tokens',
        attention=r'.*/core',
        residual_end=r'.*branch',
        decoder=r'decoder/.*',
        crossing=r'decoder/.*/cross_attn/[kv]_proj(/.*)?',
    )

    config: WhisperConfig
    scan: bool = True
    remat: str | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_features: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        deterministic: bool = True,
        cache_length: int | None = None,
        cache: EncoderDecoderCache | None = None,
        targets: jax.Array | None = None,
    ) -> Any:
        ids = needed('decoder_input_ids', decoder_input_ids, WRITTEN)
        check_token_inputs(ids, attention_mask=decoder_attention_mask, targets=targets)
        length, most = ids.shape[1], self.config.max_target_positions
        longest = max(length, cache_length or 0)
        if longest > most:
            raise ValueError(f'{longest} tokens: this checkpoint has {most} positions to write in')
        fields = {
            'config': self.config,
            'deterministic': deterministic,
            'dtype': self.dtype,
            'param_dtype': self.param_dtype,
            'scan': self.scan,
            'remat': self.remat,
        }
        keeps = cache is not None or cache_length is not None
        decoder = _Decoder(**fields, keeps=keeps, name='decoder')
        if cache is not None:
            check_follows('input_features', input_features, cache_length)
            mask, places, _ = cache.follow(length)
            logits, present = decoder(
                ids, mask, places[None], None, cache.length, cache[:4], targets
            )
            return logits, cache.grown(present, length)
        input_features = needed('input_features', input_features, 'what is heard')
        _check_features(input_features, self.config)
        encoded = _Encoder(**fields, name='encoder')(input_features)
        mask = mask_of_written(decoder_attention_mask)
        places = jnp.arange(length)[None]
        logits, present = decoder(ids, mask, places, encoded, targets=targets)
        return logits if cache_length is None else (logits, begin(present, Mask(), cache_length))


def _check_features(input_features: jax.Array, config: WhisperConfig) -> None:
    wanted = (config.num_mel_bins, 2 * config.max_source_positions)
    fits = input_features.ndim == 3 and input_features.shape[1:] == wanted
    if not fits or not jnp.issubdtype(input_features.dtype, jnp.floating):
        raise ValueError(
            f'input_features must be floats [batch, {wanted[0]} mels, {wanted[1]} frames], got '
            f'{input_features.dtype}{input_features.shape}; pad or cut the speech to its 30 seconds'
        )
