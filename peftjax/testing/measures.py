"""Measurements for the laws: shapes, distances, FLOPs and sharding."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax.binding import jaxprs, operations
from peftjax.core import paths


def product_shapes(program: Any) -> set[tuple[int, ...]]:
    """Shapes of the results of all matrix products of a jaxpr, including those inside loops."""
    found: set[tuple[int, ...]] = set()
    for equation in program.eqns:
        if isinstance(jaxprs.read(equation), operations.Dot):
            found.add(equation.outvars[0].aval.shape)
        for inner in jaxprs.programs_in(equation):
            found |= product_shapes(inner)
    return found


def shapes(tree: Any) -> dict[str, tuple[Any, ...]]:
    return {path: (leaf.shape, jnp.dtype(leaf.dtype)) for path, leaf in paths.flatten(tree).items()}


def assert_close(
    mine: jax.Array,
    theirs: jax.Array,
    tolerance: float,
    what: str = 'the output',
    size: float | None = None,
) -> None:
    found, expected = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    scale = max(np.abs(expected).max(), 1e-6) if size is None else size
    error = np.abs(found - expected).max() / scale
    assert error <= tolerance, f'{what} differs by {error:.3g} of its size, more than {tolerance}'


def sharded(leaf: jax.Array, mesh: Mesh, axis: int | None = None) -> jax.Array:
    """`leaf`, sharded over `axis` or else over the last axis that the devices divide."""
    fitting = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0]
    chosen = axis if axis is not None else (fitting[-1] if fitting else None)
    spec = PartitionSpec(*('data' if i == chosen else None for i in range(leaf.ndim)))
    return jax.device_put(leaf, NamedSharding(mesh, spec))


def flops(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    analysis = jax.jit(function).lower(*args, **kwargs).compile().cost_analysis() or {}
    return float(analysis['flops'])
