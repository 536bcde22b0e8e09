"""Which keys each query of an attention may see, described by structure."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['valid', 'segments', 'offset', 'windowed', 'array'],
    meta_fields=['causal', 'window', 'prefix'],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """Which of the keys a query sees: a pytree, whose static fields choose the kernel.

    There are T queries and `prefix` + S keys. All fields except `prefix` describe the S keys, which
    are in slots 0 to S - 1. Query t is in slot t, or in slot `offset` + t. All conditions hold at
    the same time.

    Attributes:
      causal: a query sees its own slot and the slots before it.
      window: a query sees at most this many slots, its own among them. Needs `causal`.
      prefix: the number of leading keys that every query sees.
      valid: bool [B or 1, S], the keys that are tokens.
      segments: int [B or 1, T], ids of packed sequences. A query sees keys of its own id. S is T.
      offset: int32 [], the slot of the first query: the number of tokens in a cache.
      windowed: bool [], whether the window holds, where a scan has layers with a window and layers
        without one. None if it holds.
      array: bool [B or 1, N or 1, T or 1, S], for a mask that the other fields cannot describe.

    Raises:
      ValueError: a window without `causal`, a window below 1, or a negative prefix.

    Example:
        >>> Mask(causal=True, window=2).behind(1).dense(3, 3)[0, 0].astype(int)
        Array([[1, 1, 0, 0],
               [1, 1, 1, 0],
               [1, 0, 1, 1]], dtype=int32)
    """

    causal: bool = False
    window: int | None = None
    prefix: int = 0
    valid: jax.Array | None = None
    segments: jax.Array | None = None
    offset: jax.Array | None = None
    windowed: jax.Array | None = None
    array: jax.Array | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not (self.causal and self.window >= 1):
            raise ValueError(
                f'window={self.window} with causal={self.causal}: a window needs causal=True and '
                'at least 1 key; write these, or give the mask as an array'
            )
        if self.prefix < 0:
            raise ValueError(f'prefix={self.prefix} must not be negative')

    def behind(self, count: int) -> 'Mask':
        """The mask with `count` more leading keys that every query sees."""
        return dataclasses.replace(self, prefix=self.prefix + count)

    def dense(self, queries: int, keys: int) -> Bool[jax.Array, '_ _ _ _'] | None:
        """bool [B or 1, N or 1, T or 1, prefix + S] for T `queries` and S `keys`.

        `keys` does not count the prefix. None if every query sees every key.
        """
        return self.rows(jnp.arange(queries), self.segments, self.array, keys)

    def rows(
        self,
        index: Int[jax.Array, ' T'],
        segments: Int[jax.Array, '_ T'] | None,
        array: Bool[jax.Array, '_ _ _ _'] | None,
        keys: int,
    ) -> Bool[jax.Array, '_ _ _ _'] | None:
        """`dense` for some of the queries: their numbers, their segments and their array."""
        place = index if self.offset is None else index + self.offset
        place, slot = place[None, None, :, None], jnp.arange(keys)[None, None, None, :]
        conditions = []
        if self.causal:
            conditions.append(slot <= place)
        if self.window is not None:
            near = slot > place - self.window
            conditions.append(near if self.windowed is None else near | ~self.windowed)
        if self.valid is not None:
            conditions.append(self.valid[:, None, None, :])
        if self.segments is not None and segments is not None:
            conditions.append(segments[:, None, :, None] == self.segments[:, None, None, :])
        if array is not None:
            conditions.append(array)
        if not conditions:
            return None
        seen = functools.reduce(jnp.logical_and, conditions)
        before = [(0, 0), (0, 0), (0, 0), (self.prefix, 0)]
        return jnp.pad(seen, before, constant_values=True)


def behind(mask: Any, count: int) -> Any:
    """A `Mask`, or booleans `[.., .., .., S]`, with `count` more leading keys that all see."""
    if mask is None or isinstance(mask, Mask):
        return None if mask is None else mask.behind(count)
    seen = jnp.ones((), mask.dtype)
    return jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(count, 0)], constant_values=seen)
