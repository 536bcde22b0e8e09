"""Uses: contractions, lookups and convolutions of a view, brought to the form of one matrix.

This file holds what the kinds (`dot.py`, `lookup.py`, `convolution.py`) share. Letters: `T` tokens,
`in`, `out` as in `peftjax.core.layout`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from peftjax.binding.views import Factor, Refused, View
from peftjax.core.promotion import lifted
from peftjax.core.use import Use

Forward = Callable[[Any, Use], jax.Array]


class Free(NamedTuple):
    """An axis that no weight has."""

    axis: int
    size: int


class Columns(NamedTuple):
    """The output axis of a substitute matrix."""

    size: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """How one use treats the axes of its leaf."""

    kind: str
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def read_facts(
    kind: str, view: View, batch: list[Factor], rows: list[Factor], columns: list[Factor]
) -> Facts:
    axes = [{factor.axis for factor in group} for group in (batch, rows, columns)]
    if axes[0] & axes[1] or axes[0] & axes[2] or axes[1] & axes[2]:
        raise Refused('one of its axes is contracted only in part')
    free = set(range(len(view.leaf.shape))) - set(view.leaf.picked) - axes[0] - axes[1]
    stack = sorted({*view.leaf.picked, *axes[0]})
    # An axis of size one may have lost its factor to a reshape; it is free, hence a column.
    return Facts(kind, tuple(stack), tuple(sorted(axes[1])), tuple(sorted(free)))


def scaled(inside: jax.Array, middle: jax.Array | None) -> jax.Array:
    """The values between the factors of a low-rank use, `[..., r]`, times the diagonal."""
    return inside if middle is None else inside * lifted(middle, inside).astype(inside.dtype)


class Contraction(Protocol):
    """A use of a view."""

    def facts(self) -> Facts:
        """How it treats the leaf's axes; raises `Refused` if the use has no matrix form."""
        ...

    def run(self, state: Any, rule: Forward, transposed: bool) -> jax.Array:
        """Its result by a rule, whose arrays and key are `state`."""
        ...


def factors_of(groups: Any) -> list[Any]:
    return [label for group in groups for label in group]


def in_leaf_order(factors: list[Factor]) -> list[Factor]:
    """In the leaf's own order, which is the order of its matrix form."""
    return sorted(factors, key=lambda factor: (factor.axis, -factor.stride))


def size_of(labels: Any) -> int:
    return math.prod(label.size for label in labels)
