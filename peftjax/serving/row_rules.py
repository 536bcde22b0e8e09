"""Rules of one row of a mixed batch: switched off in the empty slot, and read from the bank."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.rules import MatrixRule, ModuleRule, Rule
from peftjax.core.use import ModuleUse, Use


def switched(rule: Rule, active: Any) -> Rule:
    """The rule, which does nothing where `active` is off."""
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
    """The rule, whose arrays are taken from the bank where they are used.

    Inside a loop over layers that is one layer's at a time: the arrays of all rows and layers are
    never copied out of the bank together.

    Args:
      rule: with the arrays of one row as its leaves.
      every: the same leaves of all slots, slots in front of those that slots do not share.
      slot: int32 [], of the row.
      stack: the axes of layers of each leaf.
    """
    mine, structure = jax.tree.flatten(rule.leaves)
    count = math.prod(stack)
    tables = [
        None if leaf.ndim == own.ndim else leaf.reshape(-1, *leaf.shape[1 + len(stack) :])
        for own, leaf in zip(mine, jax.tree.leaves(every), strict=True)
    ]
    kept = [leaf for leaf, table in zip(mine, tables, strict=True) if table is None]
    place = slot * count + jnp.arange(count, dtype=slot.dtype).reshape(stack)
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
