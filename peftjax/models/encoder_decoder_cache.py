"""The cache of a decoder with an encoder, so that each token is computed once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from peftjax.core.masks import Mask
from peftjax.models.attention import is_token

WRITTEN = 'the text to write, after its start token'


class EncoderDecoderCache(NamedTuple):
    """The encoded input, and the tokens written so far in a fixed number of slots; a pytree.

    L decoder layers, B batch, S slots, R places read, N heads of width H.

    Attributes:
        keys, values: [L, B, S, N, H], of the tokens written.
        read_keys, read_values: [L, B, R, N, H], of the places read.
        read_mask: of the places read.
        mask: bool [B, S], False for a slot that holds padding or a hidden virtual token.
        length: int32 [], the number of filled slots.
        shift: int32 [B, 1], is added to the positions of tokens, as in the first call.
    """

    keys: jax.Array
    values: jax.Array
    read_keys: jax.Array
    read_values: jax.Array
    read_mask: Mask
    mask: jax.Array
    length: jax.Array
    shift: jax.Array

    def follow(self, tokens: int) -> tuple[Mask, jax.Array, jax.Array]:
        """The mask of new tokens; their positions, [T]; the positions of all slots, [S]."""
        slots = jnp.arange(self.keys.shape[2])
        # The causal mask hides the slots after the new tokens.
        mask = Mask(causal=True, offset=self.length, valid=self.mask)
        return mask, self.length + jnp.arange(tokens), slots

    def grown(self, present: tuple[jax.Array, ...], tokens: int) -> 'EncoderDecoderCache':
        """The cache with `present`, keys and values of all layers including `tokens` new ones."""
        keys, values, read_keys, read_values = present
        return self._replace(
            keys=keys,
            values=values,
            read_keys=read_keys,
            read_values=read_values,
            length=self.length + tokens,
        )


def begin(
    present: tuple[jax.Array, ...],
    read_mask: Mask,
    written: Mask,
    slots: int,
    shift: jax.Array | int = 0,
) -> EncoderDecoderCache:
    """A cache of `slots` from a first call.

    present: the first four fields of `EncoderDecoderCache`, with T tokens instead of S slots.
    written: the mask of the T tokens.
    shift: of positions, int32 [] or [B or 1, T]; the cache keeps the last, for each row.

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
    keys, values = (jnp.pad(each, wider) for each in present[:2])
    seen = jnp.ones((batch, length), bool) if written.valid is None else written.valid
    seen = jnp.broadcast_to(seen, (batch, length))
    mask = jnp.pad(seen, wider[1:3], constant_values=True)
    shift = jnp.atleast_2d(jnp.asarray(shift, jnp.int32))[:, -1:]
    shift = jnp.broadcast_to(shift, (batch, 1))
    read_keys, read_values = present[2:]
    filled = jnp.int32(length)
    return EncoderDecoderCache(keys, values, read_keys, read_values, read_mask, mask, filled, shift)


def mask_of_written(attention_mask: jax.Array | None) -> Mask:
    """The causal mask of the text to write, without its padding. attention_mask: [B, T]."""
    return Mask(causal=True, valid=is_token(attention_mask))


def needed(name: str, value: jax.Array | None, meaning: str) -> jax.Array:
    """`value`; raises ValueError if it is None."""
    if value is None:
        raise ValueError(f'{name} [batch, ...] are missing: {meaning}')
    return value


def check_follows(name: str, read: jax.Array | None, cache_length: int | None) -> None:
    """Raises ValueError if a call with a cache has `read`, the argument `name`, or a length."""
    if read is not None or cache_length is not None:
        raise ValueError(f'the cache holds the encoded input; leave {name} and cache_length out')
