"""What a program takes, read off its trace: nothing is compiled or run."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.binding import jaxprs, operations
from peftjax.train.step import LossFunction


def flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of the matrix products and convolutions of a function, on all devices together.

    They are read off the traced program, :math:`2 m k n` for a product. A loop counts as often as
    it runs, a condition by its most expensive branch, and rematerialised products count again.

    Args:
        function: traceable by JAX.
        *args: arrays, or `ShapeDtypeStruct`.

    Example:
        >>> flops(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 4)))
        48.0
    """
    return products(jax.make_jaxpr(function)(*args).jaxpr)


def draws(function: Callable[..., Any], *args: Any) -> bool:
    """Whether a function draws random numbers, read off the traced program.

    Args:
        function: traceable by JAX.
        *args: arrays, or `ShapeDtypeStruct`.

    Example:
        >>> draws(jax.random.normal, jax.random.key(0)), draws(jnp.sin, 1.0)
        (True, False)
    """
    return _draws(jax.make_jaxpr(function)(*args).jaxpr)


def _draws(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name == 'random_bits' or any(map(_draws, jaxprs.programs_in(equation)))
        for equation in jaxpr.eqns
    )


def activation_bytes(loss_fn: LossFunction, adapter: Any, frozen: Any, inputs: Any) -> int:
    """Bytes of the activations on all devices: what the backward pass needs besides arguments.

    These are the arrays that the program of `jax.vjp` returns and was not given. `adapter`,
    `frozen` and `inputs` hold `ShapeDtypeStruct`s.
    """

    def pullback(adapter: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        return jax.vjp(lambda adapter: loss_fn(adapter, frozen, batch, key)[0], adapter)[1]

    program = jax.make_jaxpr(pullback)(adapter, frozen, inputs, jax.random.key(0))
    given = set(map(id, program.jaxpr.invars))
    handed = {id(var): var.aval for var in program.jaxpr.outvars if not jaxprs.is_literal(var)}
    arrays: list[Any] = [aval for var, aval in handed.items() if var not in given]
    return math.ceil(sum(math.prod(array.shape) * width(array.dtype) for array in arrays))


def width(dtype: Any) -> float:
    """Bytes of one number."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return 8
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits / 8
    return np.dtype(dtype).itemsize


def device_bytes(tree: Any) -> int:
    """Bytes of a tree's arrays on one device, each divided by its sharding if it has one."""
    return sum(_device_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _device_bytes(leaf: Any) -> int:
    where = getattr(leaf, 'sharding', None)
    shape = leaf.shape if where is None else where.shard_shape(leaf.shape)
    return math.ceil(math.prod(shape) * width(leaf.dtype))


def products(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions of a program; see `flops`."""
    total = 0.0
    for equation in jaxpr.eqns:
        operation = jaxprs.read(equation)
        inner = [products(each) for each in jaxprs.programs_in(equation)]
        times = operation.length if isinstance(operation, operations.Scan) else 1
        # One of several branches runs; the most expensive is counted.
        total += times * (max(inner) if isinstance(operation, operations.Cond) else sum(inner))
        output = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if isinstance(operation, operations.Dot):
            shape = equation.invars[0].aval.shape
            total += 2.0 * output * math.prod(shape[axis] for axis in operation.contract[0])
        elif isinstance(operation, operations.Convolution):
            kernel = equation.invars[1].aval.shape
            features = kernel[operation.numbers.rhs_spec[0]]
            total += 2.0 * output * math.prod(kernel) / features
    return total
