"""The places of virtual tokens among the tokens of a row."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Shaped

Places = tuple[int, ...]
"""For each virtual token, ascending, the index of the token before which it is placed."""


def check_places(places: Any, count: int) -> Places:
    """`places`, or for None a place in front of all tokens for each virtual token.

    Raises:
      ValueError: unless there are `count` ascending numbers of at least 0.
    """
    if places is None:
        return (0,) * count
    given = tuple(places)
    if len(given) != count or list(given) != sorted(given) or any(place < 0 for place in given):
        raise ValueError(
            f'places must be {count} ascending numbers of at least 0, one for each virtual token, '
            f'got {given}; write for example places={tuple(range(count))}'
        )
    return given


@dataclasses.dataclass(frozen=True)
class Order:
    """The places of virtual tokens in the longer row, for each row or the same for all rows.

    A row as it was given has `T` positions, and the longer row has `L = T + n`.

    Attributes:
      count: `n`, the number of virtual tokens.
      start: the first position of the longer row that is not padding.
      virtual: the index of the virtual token at each position of the longer row; -1 for none.
      before: how many virtual tokens come before each position of the longer row.
    """

    count: int
    start: Int[jax.Array, 'B 1']
    virtual: Int[jax.Array, 'B L']
    before: Int[jax.Array, 'B L']

    def spread(self, values: Shaped[jax.Array, 'B T'], filled: Any) -> Shaped[jax.Array, 'B L']:
        """Values of the given row, moved to the longer row, with `filled` at the virtual tokens."""
        length, longer = values.shape[1], self.virtual.shape[1]
        rows = max(len(values), len(self.virtual))
        token = jnp.minimum(jnp.arange(longer)[None] - self.before, length - 1)
        found = jnp.take_along_axis(
            jnp.broadcast_to(values, (rows, length)),
            jnp.broadcast_to(token, (rows, longer)),
            axis=1,
        )
        return jnp.where(self.virtual >= 0, jnp.asarray(filled).astype(values.dtype), found)

    def as_without(self, leaf: Any, plain: Any) -> Any:
        """An output without the virtual positions.

        Args:
          leaf: the output for the longer row.
          plain: the model's output for the row as it was given; only its shape is read.

        Raises:
          ValueError: the shapes differ, but not by `count` positions in `[batch, length, ...]`.
        """
        if leaf.shape == plain.shape:
            return leaf
        shorter = (*leaf.shape[:1], leaf.shape[1] - self.count, *leaf.shape[2:])
        if shorter != plain.shape:
            raise ValueError(
                f'an output of the model is {list(leaf.shape)} with virtual tokens and '
                f'{list(plain.shape)} without them; only outputs [batch, length, ...] can lose '
                'virtual positions, for others write keep_virtual=True'
            )
        return self.without_virtual(leaf)

    def without_virtual(self, values: Shaped[jax.Array, 'B L *rest']) -> jax.Array:
        """Values of the longer row without those of the virtual tokens."""
        is_virtual = self.virtual >= 0
        # The tokens in their order, then the virtual tokens, which the slice leaves out.
        real = jnp.argsort(is_virtual, axis=1, stable=True)[:, : values.shape[1] - self.count]
        places = real.reshape(*real.shape, *(1,) * (values.ndim - 2))
        return jnp.take_along_axis(values, places, axis=1)


def order_of(places: Places, longer: int, real: Bool[jax.Array, 'B L'] | None) -> Order:
    """The order of a row of `longer` positions; `real` marks tokens, virtual ones included.

    A place counts tokens, not padding, so that padding on either side changes nothing: virtual
    tokens of place 0 stand right before the first token, after any padding on the left. In a row
    with fewer tokens, a virtual token comes after the last one.
    """
    numbers = np.arange(len(places))
    if real is None:
        slots = jnp.asarray(np.minimum(places, longer - len(places)) + numbers)[None]
        start = jnp.zeros((1, 1), jnp.int32)
    else:
        start = jnp.argmax(real, axis=1, keepdims=True).astype(jnp.int32)
        count = real.sum(axis=1, keepdims=True, dtype=jnp.int32) - len(places)
        slots = start + jnp.minimum(jnp.asarray(places)[None], count) + numbers[None]
    at = slots[:, :, None] == jnp.arange(longer)[None, None]
    is_virtual = at.any(axis=1)
    virtual = jnp.where(is_virtual, jnp.argmax(at, axis=1), -1)
    before = jnp.cumsum(is_virtual.astype(jnp.int32), axis=1) - is_virtual.astype(jnp.int32)
    return Order(len(places), start, virtual.astype(jnp.int32), before)


def with_hidden(real: Bool[jax.Array, 'B L'], hidden: jax.Array) -> Bool[jax.Array, 'B L']:
    """The mask of tokens, extended by the `hidden` virtual tokens before the first of them."""
    start = jnp.argmax(real, axis=1, keepdims=True)
    slot = jnp.arange(real.shape[1])[None]
    return real | ((slot >= start - hidden) & (slot < start))
