"""Tokens: which positions of a sequence are tokens, and which of them belong together."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Int32, Integer


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens that a module or a weight sees in one call of the model.

    Letters: `B` examples of a batch (or 1 for all alike), `T` positions of each.

    Attributes:
      real: True at tokens, False at padding; None if all positions are tokens.
      segments: ids of the examples packed into a row; None if each row is one example.
      follows: True if the tokens continue those of earlier calls.
      begins: True if later calls continue these tokens.
      shape: `(B, T)` of the call; None if no argument says it.
      ids: of the tokens; None if no argument has them.
      written: True for the second of two sequences, which a decoder writes.
    """

    real: Bool[jax.Array, 'B T'] | None = None
    segments: Integer[jax.Array, 'B T'] | None = None
    follows: bool = False
    begins: bool = False
    shape: tuple[int, ...] | None = None
    written: bool = False
    ids: Integer[jax.Array, 'B T'] | None = None

    def check(self, shape: tuple[int, ...], where: str) -> None:
        """Raises `ValueError` unless `shape` is `[B, T, features]` of these tokens."""
        if len(shape) != 3:
            raise ValueError(f'{where} needs [batch, length, features], found {shape}')
        if self.shape is not None and self.shape != shape[:2]:
            raise ValueError(
                f'{where} sees {list(shape)}, but the call has [batch, length] {list(self.shape)}; '
                'leave that module out of the targets'
            )

    def examples(self, shape: tuple[int, ...]) -> Int[jax.Array, 'B T']:
        """For each position the number of its example in its row, from 0."""
        if self.segments is None:
            return jnp.zeros(shape, jnp.int32)
        changes = self.segments[:, 1:] != self.segments[:, :-1]
        numbers = jnp.cumsum(jnp.pad(changes, ((0, 0), (1, 0))).astype(jnp.int32), axis=1)
        return jnp.broadcast_to(numbers, shape)

    def sums(self, values: Float[jax.Array, 'B T']) -> Float[jax.Array, 'B _']:
        """For each position the sum over the tokens of its example; `[B, 1]` of unpacked rows."""
        if self.real is not None:
            values = jnp.where(self.real, values, jnp.zeros_like(values))
        if self.segments is None:
            return values.sum(axis=1, keepdims=True)
        numbers, rows = self.examples(values.shape), jnp.arange(len(values))[:, None]
        return jnp.zeros_like(values).at[rows, numbers].add(values)[rows, numbers]

    def means(self, values: Float[jax.Array, 'B T'], method: str) -> Float[jax.Array, 'B _']:
        """For each position the mean over the tokens of its example; `[B, 1]` of unpacked rows.

        Raises:
          ValueError: the call has a cache, and so sees only a part of each example.
        """
        if self.follows or self.begins:
            raise ValueError(
                f'{method} takes the mean over a whole example, but a call with a cache sees a '
                'part of it; call the model on whole rows, without a cache'
            )
        # A sum of bfloat16 numbers stops growing after a few hundred of them.
        wide = values.astype(max(values.dtype, jnp.dtype('float32'), key=lambda d: d.itemsize))
        count = jnp.maximum(self.sums(jnp.ones_like(wide)), 1)
        return (self.sums(wide) / count).astype(values.dtype)

    def from_last(self, wanted: tuple[int, ...]) -> Bool[jax.Array, 'B T']:
        """The positions from the start of the last `wanted` in their example onwards.

        The ids must be adjacent in one example, and none of them may be padding.

        Raises:
          ValueError: the call has no ids.
        """
        if self.ids is None:
            raise ValueError(
                'the token ids of this call are not known; pass them as the argument with the role '
                'token_ids'
            )
        shape, size = self.ids.shape, len(wanted)
        real = jnp.ones(shape, bool) if self.real is None else jnp.broadcast_to(self.real, shape)
        numbers, rows = self.examples(shape), jnp.arange(shape[0])[:, None]
        # Behind the end of a row stands what no example has.
        ids, owner = (
            jnp.pad(jnp.where(real, each, -1), ((0, 0), (0, size)), constant_values=-1)
            for each in (self.ids, numbers)
        )
        starts = real
        for number, each in enumerate(wanted):
            there = slice(number, number + shape[1])
            starts = starts & (ids[:, there] == each) & (owner[:, there] == numbers)
        place = jnp.arange(shape[1], dtype=jnp.int32)[None]
        found = jnp.where(starts, place, -1)
        if self.segments is None:
            last = found.max(axis=1, keepdims=True)
        else:
            last = jnp.full(shape, -1, jnp.int32).at[rows, numbers].max(found)[rows, numbers]
        return (last >= 0) & (place >= last)

    def ranks(self, shape: tuple[int, ...]) -> tuple[Int[jax.Array, 'B T'], Int[jax.Array, 'B T']]:
        """For each position, how many tokens of its example come before it, and how many after."""
        real = jnp.ones(shape, bool) if self.real is None else jnp.broadcast_to(self.real, shape)
        numbers, rows = self.examples(shape), jnp.arange(shape[0])[:, None]
        upto = jnp.cumsum(real.astype(jnp.int32), axis=1)
        counts = jnp.zeros(shape, jnp.int32).at[rows, numbers].add(real.astype(jnp.int32))
        before = (jnp.cumsum(counts, axis=1) - counts)[rows, numbers]
        rank = upto - before - 1
        return rank, counts[rows, numbers] - 1 - rank


def segment_positions(segments: Integer[jax.Array, 'B T']) -> Int32[jax.Array, 'B T']:
    """Positions in packed rows: from 0, and again from 0 at each change of the id.

    >>> segment_positions(jax.numpy.array([[1, 1, 1, 2, 2, 0]]))
    Array([[0, 1, 2, 0, 1, 0]], dtype=int32)
    """
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :]
    first = jnp.ones_like(segments[:, :1], dtype=bool)
    starts = jnp.concatenate([first, segments[:, 1:] != segments[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
