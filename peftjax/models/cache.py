"""The cache of a decoder: keys and values of earlier tokens, so that each is computed once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core.masks import Mask
from peftjax.core.tokens import segment_positions
from peftjax.models.attention import is_token


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in a fixed number of slots: a pytree of arrays.

    L layers, B batch, S slots, K key-value heads of width H.

    Attributes:
        keys, values: [L, B, S, K, H]; keys are already rotated by position.
        mask: bool [B, S]: which slots hold a token that may be seen.
        position: int32 [B], of the next token of each row.
        length: int32 [], the number of filled slots, the same for every row.
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array
    position: jax.Array
    length: jax.Array

    def follow(self, tokens: int, window: int | None) -> tuple[Mask, jax.Array]:
        """The mask over the slots for `tokens` new tokens, and their positions, int32 [B, T]."""
        # The causal mask hides the slots after the new tokens, so all slots from here on are valid.
        valid = self.mask | (jnp.arange(self.mask.shape[1]) >= self.length)[None]
        mask = Mask(causal=True, window=window, valid=valid, offset=self.length)
        return mask, self.position[:, None] + jnp.arange(tokens)[None]

    def grown(self, present: tuple[jax.Array, jax.Array], tokens: int) -> 'Cache':
        """The cache with `present`, keys and values of all layers including `tokens` new ones."""
        slot = jnp.arange(self.mask.shape[1])
        new = (slot >= self.length) & (slot < self.length + tokens)
        return Cache(*present, self.mask | new[None], self.position + tokens, self.length + tokens)


def begin(
    present: tuple[jax.Array, jax.Array],
    attention_mask: jax.Array | None,
    position_ids: jax.Array,
    slots: int,
) -> Cache:
    """A cache of `slots` from a first call, with keys and values [L, B, T, K, H] of all layers.

    Raises:
        ValueError: fewer slots than tokens.
    """
    batch, length = present[0].shape[1:3]
    if slots < length:
        raise ValueError(
            f'cache_length {slots} is less than the {length} tokens of the call; write at least '
            'that number plus the tokens to come'
        )
    wider = [(0, 0), (0, 0), (0, slots - length), (0, 0), (0, 0)]
    given = jnp.ones((batch, length)) if attention_mask is None else attention_mask
    mask = given.astype(jnp.int32) == 1
    position = jnp.broadcast_to(position_ids[:, -1] + 1, (batch,)).astype(jnp.int32)
    keys, values = (jnp.pad(each, wider) for each in present)
    return Cache(
        keys,
        values,
        jnp.pad(jnp.broadcast_to(mask, (batch, length)), wider[1:3]),
        position,
        jnp.int32(length),
    )


def extend(
    past: tuple[jax.Array, jax.Array] | None, key: jax.Array, value: jax.Array, length: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, S, K, H] of one layer, with new ones [B, T, K, H] from slot `length`."""
    if past is None:
        return key, value
    zero = jnp.zeros_like(length)
    place = (zero, length, zero, zero)
    return (
        lax.dynamic_update_slice(past[0], key.astype(past[0].dtype), place),
        lax.dynamic_update_slice(past[1], value.astype(past[1].dtype), place),
    )


def look(
    length: int,
    cache: Cache | None = None,
    *,
    attention_mask: jax.Array | None,
    position_ids: jax.Array | None,
    segment_ids: jax.Array | None,
    window: int | None = None,
) -> tuple[Mask, jax.Array]:
    """The mask for `length` tokens of a decoder, and their positions, int32 [B or 1, T].

    Raises:
        ValueError: attention_mask or segment_ids with a cache.
    """
    if cache is not None:
        if attention_mask is not None or segment_ids is not None:
            raise ValueError(
                'attention_mask and segment_ids belong to the first call, with cache_length; leave '
                'them out of calls with a cache'
            )
        mask, following = cache.follow(length, window)
        return mask, following if position_ids is None else position_ids
    valid = is_token(attention_mask)
    mask = Mask(causal=True, window=window, valid=valid, segments=segment_ids)
    if position_ids is not None:
        return mask, position_ids
    if segment_ids is not None:
        return mask, segment_positions(segment_ids)
    return mask, jnp.arange(length, dtype=jnp.int32)[None]


def with_logits(
    logits: Any,
    present: tuple[jax.Array, jax.Array],
    cache: Cache | None,
    cache_length: int | None,
    attention_mask: jax.Array | None,
    position_ids: jax.Array,
) -> Any:
    """The result of a decoder: logits or scores, and a cache with `present` if one is kept.

    Raises:
        ValueError: fewer slots than tokens.
    """
    if cache is not None:
        return logits, cache.grown(present, jax.tree.leaves(logits)[0].shape[1])
    if cache_length is not None:
        return logits, begin(present, attention_mask, position_ids, cache_length)
    return logits
