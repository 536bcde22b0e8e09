"""The Whisper encoder and decoder: speech in, as a mel spectrogram, and its words out."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from peftjax.core.masks import Mask
from peftjax.core.roles import Roles
from peftjax.models.attention import check_token_inputs
from peftjax.models.encoder_decoder_cache import (
    WRITTEN,
    EncoderDecoderCache,
    begin,
    check_follows,
    mask_of_written,
    needed,
)
from peftjax.models.read_out import read_out
from peftjax.models.stack import apply_stack
from peftjax.models.whisper_config import WhisperConfig
from peftjax.models.whisper_layers import DecoderLayer, EncoderLayer, Part


class _Encoder(Part):
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
            EncoderLayer,
            self.fields,
            x,
            count=config.encoder_layers,
            scan=self.scan,
            remat=self.remat,
        )
        return self.norm('layer_norm')(x)


class _Decoder(Part):
    scan: bool = True
    remat: str | None = None
    keeps: bool = False

    @nn.compact
    def __call__(self, ids, mask, positions, encoded, length=None, past=None, targets=None):
        """Logits, or scores of targets; and the keys and values of the layers."""
        config = self.config
        tokens = self.embed(config.vocab_size, 'embed_tokens')
        table = self.embed(config.max_target_positions, 'embed_positions')
        x, present = apply_stack(
            DecoderLayer,
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

    Inputs are keyword arguments. input_features: floats [B, mels, frames], two frames for each
    position of the encoder, as the checkpoint's feature extractor makes them from 30 seconds of
    speech. decoder_input_ids [B, T] and decoder_attention_mask [B, T], 1 for tokens and 0 for
    padding, are the text to write, which starts with the checkpoint's start tokens. position_shift,
    int [] or [B or 1, T], is added to the positions of this text. deterministic=False turns on the
    dropout of the config and needs `rngs={'dropout': key}`.

    cache_length=S makes this the first call of several: it returns the logits of the last token,
    [B, 1, V], and an `EncoderDecoderCache` of S slots. Further calls take decoder_input_ids [B, T]
    and this cache, without input_features, and return logits [B, T, V] and the extended cache.

    With targets [B, T], the token that each position should predict, the result is `TokenScores`
    instead of logits, and only few logits are held at a time.

    Raises:
        ValueError: features have another rank, dtype or size; more tokens than positions; both a
            cache and features are given, or neither.

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
        position_shift='position_shift',
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
        position_shift: jax.Array | int = 0,
    ) -> Any:
        ids = needed('decoder_input_ids', decoder_input_ids, WRITTEN)
        check_token_inputs(ids, attention_mask=decoder_attention_mask, targets=targets)
        length, most = ids.shape[1], self.config.max_target_positions
        longest = max(length, cache_length or 0)
        longest += position_shift if isinstance(position_shift, int) else 0
        if longest > most:
            raise ValueError(
                f'{longest} tokens: this checkpoint has {most} positions; cut the text'
            )
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
            places = places[None] + cache.shift
            logits, present = decoder(ids, mask, places, None, cache.length, cache[:4], targets)
            return logits, cache.grown(present, length)
        input_features = needed('input_features', input_features, 'the speech')
        _check_features(input_features, self.config)
        encoded = _Encoder(**fields, name='encoder')(input_features)
        mask = mask_of_written(decoder_attention_mask)
        places = jnp.arange(length)[None] + position_shift
        logits, present = decoder(ids, mask, places, encoded, targets=targets)
        if cache_length is None:
            return logits
        return logits, begin(present, Mask(), mask, cache_length, position_shift)


def _check_features(input_features: jax.Array, config: WhisperConfig) -> None:
    wanted = (config.num_mel_bins, 2 * config.max_source_positions)
    fits = input_features.ndim == 3 and input_features.shape[1:] == wanted
    if not fits or not jnp.issubdtype(input_features.dtype, jnp.floating):
        raise ValueError(
            f'input_features must be floats [batch, {wanted[0]} mels, {wanted[1]} frames], got '
            f'{input_features.dtype}{input_features.shape}; pad or cut the speech to its 30 seconds'
        )
