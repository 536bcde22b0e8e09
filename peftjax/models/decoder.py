"""The common parts of the decoders: from tokens to states, and from states to logits or a head."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from peftjax.core.roles import Roles
from peftjax.models import cache as caches
from peftjax.models.attention import check_token_inputs, is_token
from peftjax.models.norms import RMSNorm
from peftjax.models.read_out import read_out
from peftjax.models.stack import apply_stack


class Decoder(nn.Module):
    """A stack of causal layers over embedded tokens. A family overrides its parts.

    scan, remat: see `apply_stack`. dtype: of the computation; param_dtype: of the leaves.
    """

    block: ClassVar[type[nn.Module]]
    table: ClassVar[type[nn.Embed]] = nn.Embed

    config: Any
    scan: bool = True
    remat: str | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def embedding(self) -> nn.Embed:
        """The table of tokens, which a tied head uses as well."""
        return self.table(
            self.config.vocab_size,
            self.config.hidden_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='embed_tokens',
        )

    def last_norm(self) -> nn.Module:
        """The norm after the last layer."""
        return RMSNorm(self.config.rms_norm_eps, self.dtype, self.param_dtype, name='norm')

    def embedded(
        self, embed: nn.Embed, input_ids: jax.Array, positions: jax.Array, deterministic: bool
    ) -> jax.Array:
        """The input of the first layer, [B, T, D]."""
        del positions, deterministic
        return embed(input_ids)

    def shared(self, mask: Any, positions: jax.Array) -> tuple[Any, ...]:
        """The arguments of every layer besides states, cache and the length of the cache."""
        del positions
        return (mask,)

    def own(self, past: Any) -> Any:
        """The `own` of `apply_stack`. past: keys and values of the cache, or None."""
        return past

    def check_length(self, length: int) -> None:
        """Raises ValueError for more tokens than the model has positions."""

    def finished(self, logits: jax.Array) -> jax.Array:
        """The logits of tokens, from the output of the head."""
        return logits

    def states(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        position_ids: jax.Array | None,
        segment_ids: jax.Array | None,
        deterministic: bool,
        cache: caches.Cache | None = None,
        cache_length: int | None = None,
        targets: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, nn.Embed, jax.Array]:
        """States [B, T, D] before the last norm, keys and values, the embedding, the positions.

        Call it inside a compact method. It checks the inputs and the targets.
        """
        given = {
            'attention_mask': attention_mask,
            'position_ids': position_ids,
            'segment_ids': segment_ids,
        }
        check_token_inputs(input_ids, **given, targets=targets)
        length, config = input_ids.shape[1], self.config
        slots = length if cache is None else cache.mask.shape[1]
        self.check_length(max(length, cache_length or slots))
        window = getattr(config, 'sliding_window', None)
        mask, positions = caches.look(length, cache, **given, window=window)
        embed = self.embedding()
        first, *others = self.shared(mask, positions)
        x, present = apply_stack(
            self.block,
            {
                'config': config,
                'deterministic': deterministic,
                'dtype': self.dtype,
                'param_dtype': self.param_dtype,
                'keeps': cache is not None or cache_length is not None,
            },
            self.embedded(embed, input_ids, positions, deterministic),
            first,
            None if cache is None else cache.length,
            *others,
            count=config.num_hidden_layers,
            scan=self.scan,
            remat=self.remat,
            own=self.own(None if cache is None else (cache.keys, cache.values)),
        )
        return x, present, embed, positions


class LanguageModel(Decoder):
    """A decoder that writes: logits [B, T, V] of the next token at each position.

    The head is `lm_head`, or the embedding if the config ties the two.

    Inputs are keyword arguments. input_ids [B, T]. attention_mask [B, T]: 1 for tokens and 0 for
    padding. segment_ids [B, T] for packed rows: attention stays inside a segment, and positions
    restart with it. position_ids [B, T] overrides the positions, which count padding too.
    deterministic=False turns on the dropout of the config and needs `rngs={'dropout': key}`.

    cache_length=S makes this the first call of several: it returns the logits of the last token,
    [B, 1, V], and a `Cache` of S slots. Further calls take input_ids [B, T] and this cache, without
    attention_mask and segment_ids, and return logits [B, T, V] and the extended cache.

    With targets [B, T], the token that each position should predict, the result is `TokenScores`
    instead of logits, and only few logits are held at a time.

    Raises:
        ValueError: an input has another shape; a mask or segments are given with a cache; more
            tokens than positions, or in the first call more tokens than slots.
    """

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
        x, present, embed, positions = self.states(
            input_ids,
            attention_mask,
            position_ids,
            segment_ids,
            deterministic,
            cache,
            cache_length,
            targets,
        )
        if cache_length is not None:
            x = x[:, -1:]
        logits = read_out(
            self.last_norm()(x),
            embed,
            tied=self.config.tie_word_embeddings,
            targets=targets,
            finish=self.finished,
        )
        return caches.with_logits(logits, present, cache, cache_length, attention_mask, positions)


class Classifier(Decoder):
    """A decoder with a head on the last token of a text, or on each token.

    outputs: K. The head gives logits [B, K]: `score(h)`, without a bias, of the last state h whose
        attention_mask is 1. Padding may be on either side; a row of padding alone is read at its
        first position.
    each_token: the head gives logits [B, T, K] of every token instead. It has a bias; with
        deterministic=False, dropout precedes it at the config's `classifier_dropout`, or 0.1 if
        that is None.

    Inputs are those of `LanguageModel`, without cache and targets. Packed rows (segment_ids) need
    a head on each token.

    transformers (5.23) finds the last token by `input_ids != pad_token_id`, whatever the
    attention_mask. The two differ if a text ends with the padding token (for example, where the
    end-of-text token pads) or if the mask hides tokens other than padding.

    Raises:
        ValueError: an input has another shape; packed rows with a head on the last token.
    """

    head_of_tokens: ClassVar[str] = 'score'

    outputs: int = 1
    each_token: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        if segment_ids is not None and not self.each_token:
            raise ValueError(
                f'segment_ids {segment_ids.shape} pack several texts into a row, and the head '
                'reads the last token of one; give attention_mask, and one text a row'
            )
        x, *_ = self.states(input_ids, attention_mask, position_ids, segment_ids, deterministic)
        x = self.last_norm()(x)
        if self.each_token:
            rate = self.config.classifier_dropout
            rate = 0.1 if rate is None else rate
            x = nn.Dropout(rate, deterministic=deterministic, name='head_dropout')(x)
        else:
            x = _last_tokens(x, attention_mask)
        return nn.Dense(
            self.outputs,
            use_bias=self.each_token,
            kernel_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=self.head_of_tokens if self.each_token else 'score',
        )(x)


def _last_tokens(x: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """The state of each row's last token, [B, D], from states [B, T, D]."""
    real = is_token(attention_mask)
    if real is None:
        return x[:, -1]
    places = jnp.max(jnp.where(real, jnp.arange(x.shape[1])[None], 0), axis=1)
    places = jnp.broadcast_to(places, x.shape[:1])
    return jnp.take_along_axis(x, places[:, None, None], axis=1)[:, 0]


def roles_of_reading(embedding: str) -> Roles:
    """The roles of a `Classifier` whose table of tokens is at the path `embedding`."""
    return Roles(
        token_ids='input_ids',
        mask='attention_mask',
        positions='position_ids',
        segments='segment_ids',
        embedding=embedding,
        attention=r'.*/core',
        residual_end=r'.*branch',
    )


def roles_of_writing(embedding: str) -> Roles:
    """The roles of a `LanguageModel` whose table of tokens is at the path `embedding`."""
    return dataclasses.replace(
        roles_of_reading(embedding), targets='targets', cache='cache', cache_length='cache_length'
    )
