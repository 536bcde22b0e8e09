"""The T5 encoder and decoder: relative positions, RMS norms in front, no biases, no scale."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from peftjax.core.masks import Mask
from peftjax.core.roles import Roles
from peftjax.models.attention import check_token_inputs, is_token
from peftjax.models.encoder_decoder_cache import (
    WRITTEN,
    EncoderDecoderCache,
    begin,
    check_follows,
    mask_of_written,
    needed,
)
from peftjax.models.read_out import read_out
from peftjax.models.t5_config import T5Config
from peftjax.models.t5_layers import Stack


class T5(nn.Module):
    """A T5 encoder and decoder that write: logits [B, T, V].

    The head is the embedding, on states divided by √d_model, or a separate `lm_head` on the states
    themselves; the config says which. scan, remat: see `apply_stack`. dtype: of the computation;
    param_dtype: of the leaves.

    Inputs are keyword arguments. input_ids [B, S] and attention_mask [B, S], 1 for tokens and 0 for
    padding, are the text to read. decoder_input_ids [B, T] and decoder_attention_mask [B, T] are
    the text to write, which starts with the padding token. deterministic=False turns on the dropout
    of the config and needs `rngs={'dropout': key}`.

    cache_length=S makes this the first call of several: it returns the logits of the last token,
    [B, 1, V], and an `EncoderDecoderCache` of S slots. Further calls take decoder_input_ids [B, T]
    and this cache, without input_ids, and return logits [B, T, V] and the extended cache.

    With targets [B, T], the token that each position should predict, the result is `TokenScores`
    instead of logits, and only few logits are held at a time.

    prefix_length=n says that a method puts n keys in front of the keys of every self-attention, at
    the n positions before the first token of each row. The attention core then gets their
    `prefix_bias`.

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
        prefix_length='prefix_length',
        by_distance=True,
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
        prefix_length: int = 0,
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

        def stack(name: str, layers: int) -> Stack:
            return Stack(
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
                prefix=prefix_length,
            )
            return self._read_out(x, embed, targets), cache.grown(present, length)
        input_ids = needed('input_ids', input_ids, 'what is read')
        check_token_inputs(input_ids, attention_mask=attention_mask)
        read = Mask(valid=is_token(attention_mask))
        encoder, prefix = stack('encoder', config.num_layers), {'prefix': prefix_length}
        encoded, _ = encoder(embed(input_ids), read, **prefix)
        written = mask_of_written(decoder_attention_mask)
        x, present = decoder(embed(decoder_input_ids), written, encoded, read, None, **prefix)
        if cache_length is None:
            return self._read_out(x, embed, targets)
        return self._read_out(x[:, -1:], embed, targets), begin(
            present, read, written, cache_length
        )

    def _read_out(self, x: jax.Array, embed: nn.Embed, targets: jax.Array | None) -> Any:
        config = self.config
        if config.scale_decoder_outputs:
            x = x * config.d_model**-0.5
        return read_out(x, embed, tied=config.tie_word_embeddings, targets=targets)
