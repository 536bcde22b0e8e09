"""Positions of a sequence that a method edits: all of them, or some at either end."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

Edit = Callable[[Any, Float[jax.Array, '*T features']], Float[jax.Array, '*T features']]
"""`edit(leaves, states)`: states `[..., features]` as they shall be."""


class Positions(NamedTuple):
    """How many positions at either end; both None for all of them.

    Attributes:
      first, last: counts.
      tied: the same leaves edit both ends.
    """

    first: int | None
    last: int | None
    tied: bool = False

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the parts of an adapter that edit on their own."""
        if self.first is None or self.tied:
            return ('all',) if self.first is None else ('both',)
        ends = ('first', self.first), ('last', self.last)
        return tuple(name for name, count in ends if count)


def parse(text: str, tied: bool) -> Positions:
    """Reads `'all'`, `'f3'`, `'l2'` or `'f3+l2'`.

    Raises:
      ValueError: it reads as none of these.
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
    h: Float[jax.Array, '*T features'],
    mask: Shaped[jax.Array, '...'] | None,
) -> Float[jax.Array, '*T features']:
    """`h: [batch, length, features]` with `edit` at the positions, counted where `mask` is 1.

    Raises:
      ValueError: `h` has another rank, and not all positions are meant.
    """
    if positions.first is None:
        return _edit_all(edit, leaves['all'], h, mask)
    return _edit_ends(positions, edit, leaves, h, mask)


def _edit_all(
    edit: Edit,
    unit: Mapping[str, Any],
    h: Float[jax.Array, '*T features'],
    mask: Shaped[jax.Array, '...'] | None,
) -> Float[jax.Array, '*T features']:
    edited = edit(unit, h)
    if mask is None or mask.shape != h.shape[:-1]:
        return edited
    return jnp.where(mask[..., None].astype(jnp.int32) == 1, edited, h)


def _edit_ends(
    ends: Positions,
    edit: Edit,
    leaves: Mapping[str, Any],
    h: Float[jax.Array, '*T features'],
    mask: Shaped[jax.Array, '...'] | None,
) -> Float[jax.Array, '*T features']:
    if h.ndim != 3:
        raise ValueError(f'positions need [batch, length, features], found {h.shape} {h.dtype}')
    batch, length = h.shape[:2]
    tokens = jnp.ones((batch, length), bool) if mask is None else mask.astype(jnp.int32) == 1
    start = jnp.argmax(tokens, axis=1)
    end = length - jnp.argmax(tokens[:, ::-1], axis=1)
    rows = jnp.arange(batch)[:, None]
    edited = h
    for name, count, where in (('first', ends.first, start), ('last', ends.last, end)):
        if not count:
            continue
        count = min(count, length)
        offsets = jnp.arange(count) - (count if name == 'last' else 0)
        index = where[:, None] + offsets[None]
        # Positions outside of the tokens go where reading fills in and writing drops.
        index = jnp.where((index >= start[:, None]) & (index < end[:, None]), index, length)
        states = h.at[rows, index].get(mode='fill', fill_value=0)
        unit = leaves[name] if name in leaves else leaves['both']
        edited = edited.at[rows, index].set(edit(unit, states), mode='drop')
    return edited
