"""Positions of a sequence that a method edits: all of them, or some at either end."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from peftjax.core.tokens import Tokens

Edit = Callable[[Any, Float[jax.Array, '*T features']], Float[jax.Array, '*T features']]
"""`edit(leaves, states)`: the edited states `[..., features]`."""


class Positions(NamedTuple):
    """How many positions are edited at each end; both None for all positions.

    Attributes:
      first, last: counts.
      tied: the same leaves edit both ends.
    """

    first: int | None
    last: int | None
    tied: bool = False

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the parts of an adapter that edit separately."""
        if self.first is None or self.tied:
            return ('all',) if self.first is None else ('both',)
        ends = ('first', self.first), ('last', self.last)
        return tuple(name for name, count in ends if count)


def parse(text: str, tied: bool) -> Positions:
    """Reads `'all'`, `'f3'`, `'l2'` or `'f3+l2'`.

    Raises:
      ValueError: the text has none of these forms.
    """
    if text == 'all':
        return Positions(None, None, tied)
    match = re.fullmatch(r'(?:f(\d+))?\+?(?:l(\d+))?', text)
    first, last = (int(count or 0) for count in match.groups()) if match else (0, 0)
    if not first + last:
        raise ValueError(f"positions must be 'all', 'f3', 'l2' or 'f3+l2', got {text!r}")
    return Positions(first, last, tied)


def edit_at(
    positions: Positions,
    edit: Edit,
    leaves: Mapping[str, Any],
    h: Float[jax.Array, 'B T features'],
    tokens: Tokens,
) -> Float[jax.Array, 'B T features']:
    """`h` with `edit` applied to the first and last tokens of each example."""
    if tokens.segments is None:
        return _edit_rows(positions, edit, leaves, h, tokens)
    shape = h.shape[:2]
    from_start, from_end = tokens.ranks(shape)
    real = jnp.ones(shape, bool) if tokens.real is None else tokens.real
    edited = h
    for unit, count, at_end in _ends(positions, leaves):
        rank = from_end if at_end else from_start
        edited = jnp.where((real & (rank < count))[..., None], edit(unit, h), edited)
    return edited


def _edit_rows(
    positions: Positions,
    edit: Edit,
    leaves: Mapping[str, Any],
    h: Float[jax.Array, 'B T features'],
    tokens: Tokens,
) -> Float[jax.Array, 'B T features']:
    """The same if each row is one example: only the states at its ends are edited."""
    batch, length = h.shape[:2]
    real = jnp.ones((batch, length), bool)
    real = real if tokens.real is None else jnp.broadcast_to(tokens.real, real.shape)
    slots = jnp.argsort(~real, axis=1, stable=True)  # Those of the tokens first, in their order.
    size = real.sum(axis=1, keepdims=True, dtype=jnp.int32)
    rows, edited = jnp.arange(batch)[:, None], h
    for unit, count, at_end in _ends(positions, leaves):
        nth = jnp.arange(min(count, length), dtype=jnp.int32)[None]
        nth = size - 1 - nth if at_end else nth
        index = jnp.take_along_axis(slots, jnp.clip(nth, 0, length - 1), axis=1)
        # What a row is too short for goes where reading fills in and writing drops.
        index = jnp.where((nth >= 0) & (nth < size), index, length)
        states = h.at[rows, index].get(mode='fill', fill_value=0)
        edited = edited.at[rows, index].set(edit(unit, states), mode='drop')
    return edited


def _ends(positions: Positions, leaves: Mapping[str, Any]) -> list[tuple[Any, int, bool]]:
    """Leaves, count and whether it is the end, for each end that is edited."""
    ends = ('first', positions.first, False), ('last', positions.last, True)
    return [
        (leaves[name] if name in leaves else leaves['both'], count, at_end)
        for name, count, at_end in ends
        if count
    ]
