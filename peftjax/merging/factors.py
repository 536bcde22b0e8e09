"""The methods whose change of a weight is a product of two factors, written down exactly."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.entries import Entry
from peftjax.merging.changes import Factored, over

_Factors = tuple[jax.Array, jax.Array]


def _lora(leaves: Mapping[str, jax.Array]) -> _Factors:
    return leaves['a'] * over(leaves['scale'], leaves['a']), leaves['b']


def _adalora(leaves: Mapping[str, jax.Array]) -> _Factors:
    scaled = leaves['p'] * leaves['lambda'][..., None, :]
    return scaled * over(leaves['scale'], scaled), leaves['q']


def _vera(leaves: Mapping[str, jax.Array]) -> _Factors:
    left = leaves['frozen_a'] * leaves['d'][..., None, :]
    return left, leaves['frozen_b'] * leaves['b'][..., None, :]


FACTORED: dict[str, Callable[[Mapping[str, jax.Array]], _Factors]] = {
    'lora': _lora,
    'lora_fa': _lora,
    'pissa': _lora,
    'olora': _lora,
    'adalora': _adalora,
    'vera': _vera,
}
"""The factors `L, R` of a change `L R` by method, from its leaves and numbers, stacks in front."""

FACTORED_BY = frozenset({'lora', 'lora_fa', 'adalora', 'vera'})
"""The functions that make transforms of these methods; PiSSA and OLoRA are starts of `lora`."""

STARTS_FROM_WEIGHT = frozenset({'pissa', 'olora'})
"""Starts that subtract the product of the initial factors from the weights that stay frozen."""


def factored(entry: Entry, numbers: Mapping[str, Any]) -> Factored:
    """The change that an entry of a method in `FACTORED` adds to its frozen weight."""
    assert entry.layout is not None
    leaves = {name: jnp.asarray(each, jnp.float32) for name, each in {**entry, **numbers}.items()}
    left, right = FACTORED[entry.method](leaves)
    return Factored(left, right, entry.layout)


def joined(changes: list[Factored]) -> Factored:
    """The exact sum of changes, with their factors side by side; its rank is the sum of ranks."""
    if len(changes) == 1:
        return changes[0]
    left = jnp.concatenate([each.left for each in changes], -1)
    right = jnp.concatenate([each.right for each in changes], -2)
    return Factored(left, right, changes[0].layout)
