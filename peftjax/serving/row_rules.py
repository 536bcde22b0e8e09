"""Rules of one row of a mixed batch: switched off in the empty slot, from the bank, in blocks."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from peftjax.binding.precompute import by_matrix
from peftjax.core.model import Model
from peftjax.core.rules import CallRule, MatrixRule, ModuleRule, Rule
from peftjax.core.use import ModuleUse, Use


class Blocks(NamedTuple):
    """How the tokens of a row are cut: `tokens` of them into `blocks` of one length."""

    tokens: int
    blocks: int


def ready(rule: Rule, merged: bool, seen: Any, length: jax.Array) -> Rule:
    """The rule with its prepared leaves, and with the virtual tokens of its adapter."""
    if merged and isinstance(rule, MatrixRule):
        return by_matrix(rule, seen)
    if isinstance(rule, CallRule | ModuleRule) and rule.shorten is not None:
        rule = rule.shorten(length)
    if isinstance(rule, MatrixRule):
        return dataclasses.replace(rule, leaves=seen, prepare=None, before=None)
    if isinstance(rule, ModuleRule):
        return dataclasses.replace(rule, leaves=seen, prepare=None)
    return rule


def stack_of(model: Model, path: str, rule: Rule) -> tuple[int, ...]:
    """The axes of layers in front of the leaves of a rule."""
    if isinstance(rule, MatrixRule):
        return rule.layout.stack_shape
    return tuple(model.sites.modules[path].stack) if isinstance(rule, ModuleRule) else ()


def switched(rule: Rule, active: Any) -> Rule:
    """The rule, which does nothing if `active` is False."""
    if isinstance(rule, MatrixRule):
        return dataclasses.replace(rule, apply=_switched_use(rule.apply, active))
    if isinstance(rule, ModuleRule) and not rule.only_virtual:
        apply = rule.apply

        def of_module(leaves: Any, use: ModuleUse) -> jax.Array:
            return jnp.where(active, apply(leaves, use), use.output)

        return dataclasses.replace(rule, apply=of_module)
    return rule  # Its virtual tokens are masked, all of them in the empty slot.


def _switched_use(apply: Callable[[Any, Use], jax.Array], active: Any) -> Callable[..., jax.Array]:
    def of_use(leaves: Any, use: Use) -> jax.Array:
        plain: list[jax.Array] = []

        def forward(x: jax.Array) -> jax.Array:
            # So one product serves both: a method that turns the input need not be followed by a
            # second product with the input as it was.
            y = use.forward(x if x is use.x else jnp.where(active, x, use.x))
            plain.append(y)
            return y

        y = apply(leaves, use.replace(forward=forward))
        unchanged = plain[-1] if plain else use.forward(use.x)
        return jnp.where(active, y, unchanged.astype(y.dtype))

    return of_use


def read_inside(
    rule: MatrixRule | ModuleRule,
    every: Any,
    slot: jax.Array,
    stack: tuple[int, ...],
) -> MatrixRule | ModuleRule:
    """The rule, with its arrays taken from the bank at each use.

    Inside a loop over layers, the arrays of one layer are taken at a time, so the arrays of all
    rows and layers are never copied out of the bank together.

    Args:
      rule: with the arrays of one slot as its leaves.
      every: the same leaves of all slots, slots in front of those that slots do not share.
      slot: int32 [], of the row, or [blocks].
      stack: the axes of layers of each leaf.
    """
    mine, structure = jax.tree.flatten(rule.leaves)
    count = math.prod(stack)
    tables = [
        None if leaf.ndim == own.ndim else leaf.reshape(-1, *leaf.shape[1 + len(stack) :])
        for own, leaf in zip(mine, jax.tree.leaves(every), strict=True)
    ]
    kept = [leaf for leaf, table in zip(mine, tables, strict=True) if table is None]
    layer = jnp.arange(count, dtype=slot.dtype).reshape(*stack, *[1] * slot.ndim)
    place = jnp.expand_dims(slot * count, tuple(range(len(stack)))) + layer
    apply: Callable[[Any, Any], jax.Array] = rule.apply

    def reading(leaves: Any, use: Any) -> jax.Array:
        given, place = leaves
        rest = iter(given)
        taken = [
            next(rest) if table is None else jnp.take(table, place, axis=0, mode='clip')
            for table in tables
        ]
        return apply(jax.tree.unflatten(structure, taken), use)

    return dataclasses.replace(rule, leaves=(kept, place), apply=reading)


def in_blocks(
    path: str, rule: Rule, of_member: Callable[[Any], Any], members: Any, axes: Any, row: Blocks
) -> Rule:
    """The rule, whose leaves hold an adapter for each block of the tokens of a row.

    Each block is computed with its own adapter; the product with the base's weight stays whole.

    Args:
      path: of the rule.
      rule: with an axis of blocks in its leaves, after the axes of layers.
      of_member: the rule of one adapter.
      members: the adapters of all blocks.
      axes: of blocks in `members`, and in the leaves of one layer, as `jax.vmap` takes them.
      row: how it is cut.

    Raises:
      ValueError: a method that acts on more than the tokens of its block.
    """
    if not isinstance(rule, MatrixRule) or rule.whole:
        raise ValueError(
            f'the method at {path!r} acts on several tokens together, but the blocks of a row may '
            'have different adapters; write one slot for each row, and pack no rows'
        )

    def of_use(leaves: Any, use: Use) -> jax.Array:
        if use.kind == 'conv' or use.x.shape[0] != row.tokens:
            raise ValueError(
                f'{path!r} acts on {list(use.axes)} positions of a row of {row.tokens} tokens, but '
                'slots for blocks need all of them; adapt other weights'
            )

        def of_block(member: Any, leaves: Any, x: jax.Array) -> jax.Array:
            return of_member(member).apply(leaves, use.replace(x=x, axes=x.shape[:1]))

        parts = use.x.reshape(row.blocks, -1, *use.x.shape[1:])
        y = jax.vmap(of_block, (*axes, 0))(members, leaves, parts)
        return y.reshape(row.tokens, -1)

    return dataclasses.replace(rule, apply=of_use)
