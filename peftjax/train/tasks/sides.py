"""Rows of several texts, such as a chosen and a rejected answer, that a model reads in one call."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.train.data.packing import Row, pad
from peftjax.train.task import Batch


def join_sides(sides: Sequence[Row]) -> Row:
    """Joins several rows: shorter sides are padded, and names of arrays have the side's number.

    The first side keeps its names; those of side 1 are 'input_ids:1' and so on.

    Example:
        >>> import numpy as np
        >>> row = join_sides([{'input_ids': np.ones(2, int)}, {'input_ids': np.ones(3, int)}])
        >>> {name: ids.tolist() for name, ids in row.items()}
        {'input_ids': [1, 1, 0], 'input_ids:1': [1, 1, 1]}
    """
    longest = max(len(side['input_ids']) for side in sides)
    return {
        side_name(name, number): value
        for number, side in enumerate(sides)
        for name, value in pad(side, longest).items()
    }


def stack_sides(batch: Batch, count: int, names: Sequence[str]) -> dict[str, Any]:
    """Arrays of the first `count` sides, one after another: `[count * B, ...]`, by name.

    Example:
        >>> batch = {'weights': jnp.zeros(2), 'weights:1': jnp.ones(2)}
        >>> stack_sides(batch, 2, ('weights',))['weights'].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    return {
        name: jnp.concatenate([jnp.asarray(batch[side_name(name, i)]) for i in range(count)])
        for name in names
    }


def one_side(batch: Batch, number: int, names: Sequence[str]) -> dict[str, Any]:
    """Arrays of one side, under their plain names."""
    return {name: batch[side_name(name, number)] for name in names}


def side_name(name: str, number: int) -> str:
    """The name of a side's array in a joined row."""
    return f'{name}:{number}' if number else name


def weighted(values: dict[str, jax.Array], weights: Any) -> dict[str, jax.Array]:
    """Totals of values `[B]`, each times its weight; a value of weight 0 may even be NaN.

    Example:
        >>> totals = weighted({'loss': jnp.asarray([2.0, jnp.nan])}, jnp.asarray([1.0, 0.0]))
        >>> {name: float(total) for name, total in totals.items()}
        {'loss': 2.0, 'weights': 1.0}
    """
    weights = jnp.asarray(weights, jnp.float32)
    sums = {
        name: jnp.where(weights > 0, value.astype(jnp.float32) * weights, 0.0).sum()
        for name, value in values.items()
    }
    return {**sums, 'weights': weights.sum()}
