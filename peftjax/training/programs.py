"""Traced programs, and what they have in common: several that differ in numbers alone, as one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from peftjax.binding import jaxprs
from peftjax.binding.jaxprs import Body
from peftjax.training.counting import products


@dataclasses.dataclass(frozen=True)
class _Number:
    """A place in a program where a number stands: which of all."""

    index: int


@dataclasses.dataclass(frozen=True)
class _Step:
    eqn: Any
    operation: jaxprs.Operation | None
    inputs: tuple[Any, ...]  # variables, and _Number where a constant stands
    bodies: tuple['_Body', ...]


@dataclasses.dataclass(frozen=True)
class _Body:
    inputs: tuple[Any, ...]
    constants: Mapping[Any, _Number]
    steps: tuple[_Step, ...]
    outputs: tuple[Any, ...]
    span: tuple[int, int]  # the numbers that stand in it


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function as it was traced, and the numbers in it.

    Attributes:
        exact: equal for two programs that do the same with other numbers.
        loose: equal also where axes have other lengths.
        numbers: constants in the order of the program: scalars, and arrays that it closes over.
        shapes, results: of the leaves of the arguments, and of what it gives.
        flops: of its matrix products, as `peftjax.training.flops` counts them.
    """

    exact: str
    loose: str
    numbers: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    flops: float
    _body: _Body
    _trees: tuple[Any, Any]

    def __call__(self, numbers: Sequence[Any], *args: Any) -> Any:
        """The function's value at `args`, with other numbers in the place of its own."""
        leaves, tree = jax.tree.flatten(args)
        if tree != self._trees[0]:
            raise ValueError(f'traced with arguments {self._trees[0]}, called with {tree}')
        return jax.tree.unflatten(self._trees[1], _evaluate(self._body, leaves, numbers))


def trace(function: Callable[..., Any], *args: Any) -> Program:
    """Traces a function on arguments, or on their shapes alone.

    Args:
        function: pure, such as a training step; not to be differentiated further, as custom
            derivatives are dropped.
        *args: pytrees of arrays, or of `jax.ShapeDtypeStruct`.

    Example:
        >>> one, two = (trace(lambda x, c=c: jnp.sin(c * x), 1.0) for c in (2.0, 3.0))
        >>> one.exact == two.exact, float(one.numbers[0]), float(two.numbers[0])
        (True, 2.0, 3.0)
    """
    closed, result = jax.make_jaxpr(function, return_shape=True)(*args)
    reader = _Reader()
    body = reader.body(Body(closed.jaxpr, closed.consts))
    leaves, tree = jax.tree.flatten(args)
    return Program(
        '\n'.join(reader.exact),
        '\n'.join(reader.loose),
        tuple(reader.numbers),
        tuple(np.shape(leaf) for leaf in leaves),
        tuple(leaf.shape for leaf in jax.tree.leaves(result)),
        products(closed.jaxpr),
        body,
        (tree, jax.tree.structure(result)),
    )


def vary(programs: Sequence[Program]) -> dict[int, Any]:
    """The numbers that are not the same in all programs, stacked: `{which: [K, ...]}`.

    Raises:
        ValueError: a constant has not the same shape in all programs.
    """
    differing: dict[int, Any] = {}
    for index, values in enumerate(zip(*(each.numbers for each in programs), strict=True)):
        if any(np.shape(value) != np.shape(values[0]) for value in values):
            shapes = sorted({np.shape(value) for value in values})
            raise ValueError(f'a constant of the programs has several shapes: {shapes}')
        if not all(_same(value, values[0]) for value in values):
            differing[index] = jnp.stack([jnp.asarray(value, _dtype(value)) for value in values])
    return differing


def _dtype(value: Any) -> Any:
    return value.dtype if hasattr(value, 'dtype') else jnp.result_type(value)


def _same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if jnp.issubdtype(_dtype(value), jax.dtypes.prng_key):
        value, other = jax.random.key_data(value), jax.random.key_data(other)
    return np.array_equal(value, other, equal_nan=jnp.issubdtype(_dtype(value), jnp.inexact))


class _Reader:
    """Reads a jaxpr into a body, its text and its numbers."""

    def __init__(self) -> None:
        self.exact: list[str] = []
        self.loose: list[str] = []
        self.numbers: list[Any] = []

    def body(self, program: Body) -> _Body:
        jaxpr, consts = program
        start, names = len(self.numbers), {}
        constants = {
            var: self._number(value) for var, value in zip(jaxpr.constvars, consts, strict=True)
        }
        for var in [*jaxpr.constvars, *jaxpr.invars]:
            names[var] = len(names)
        self._say('body', [var.aval for var in [*jaxpr.constvars, *jaxpr.invars]])
        steps = tuple(self._step(eqn, names) for eqn in jaxpr.eqns)
        outputs = tuple(self._read(var) for var in jaxpr.outvars)
        self._say(f'gives {self._operands(outputs, names)}', [])
        span = start, len(self.numbers)
        return _Body(tuple(jaxpr.invars), constants, steps, outputs, span)

    def _step(self, eqn: Any, names: dict[Any, int]) -> _Step:
        name = eqn.primitive.name
        inputs = tuple(self._read(var) for var in eqn.invars)
        operation = jaxprs.read(eqn)
        called = f'{name} {self._operands(inputs, names)}'
        exact, loose = jaxprs.text(eqn), jaxprs.text(eqn, lengths=False)
        self._say(f'{called} {exact}', [v.aval for v in eqn.outvars], f'{called} {loose}')
        for var in eqn.outvars:
            names[var] = len(names)
        # The function is differentiated already: nothing asks for a call's own derivative any more.
        bodies = tuple(self.body(body) for body in jaxprs.bodies(operation))
        return _Step(eqn, operation, inputs, bodies)

    def _read(self, var: Any) -> Any:
        return self._number(var.val, var.aval) if jaxprs.is_literal(var) else var

    def _number(self, value: Any, aval: Any = None) -> _Number:
        if aval is not None and _dtype(value) != aval.dtype:
            value = np.asarray(value, aval.dtype)
        if np.shape(value):
            self.loose.append(f'array {np.shape(value)}')
        self.numbers.append(value)
        return _Number(len(self.numbers) - 1)

    def _operands(self, inputs: Sequence[Any], names: Mapping[Any, int]) -> str:
        return ' '.join('number' if isinstance(v, _Number) else str(names[v]) for v in inputs)

    def _say(self, text: str, avals: Sequence[Any], loose: str | None = None) -> None:
        kinds = ' '.join(f'{aval.dtype}{len(aval.shape)}' for aval in avals if _is_array(aval))
        shapes = ' '.join(str(aval) for aval in avals)
        self.exact.append(f'{text} {shapes}')
        self.loose.append(f'{text} {kinds}' if loose is None else f'{loose} {kinds}')


def _is_array(aval: Any) -> bool:
    return hasattr(aval, 'shape')


def _evaluate(body: _Body, args: Sequence[Any], numbers: Sequence[Any]) -> list[Any]:
    env: dict[Any, Any] = dict(zip(body.inputs, args, strict=True))
    env.update({var: numbers[number.index] for var, number in body.constants.items()})

    def read(var: Any) -> Any:
        return numbers[var.index] if isinstance(var, _Number) else env[var]

    for step in body.steps:
        inputs = [read(var) for var in step.inputs]
        env.update(zip(step.eqn.outvars, _apply(step, inputs, numbers), strict=True))
    return [read(var) for var in body.outputs]


def _apply(step: _Step, inputs: list[Any], numbers: Sequence[Any]) -> Sequence[Any]:
    operation = step.operation
    if isinstance(operation, jaxprs.Call | jaxprs.Derivative):
        return _evaluate(step.bodies[0], inputs, numbers)
    if isinstance(operation, jaxprs.Scan):
        return _scan(operation, step, inputs, numbers)
    if isinstance(operation, jaxprs.While):
        return _while(operation, step, inputs, numbers)
    if isinstance(operation, jaxprs.Cond):
        return _cond(step, inputs, numbers)
    if isinstance(operation, jaxprs.Remat):
        return _remat(step, inputs, numbers)
    return jaxprs.bind(step.eqn, inputs)


def _scan(
    operation: jaxprs.Scan, step: _Step, inputs: list[Any], numbers: Sequence[Any]
) -> list[Any]:
    consts, carry, slices = operation.split(inputs)

    def body(state: list[Any], parts: list[Any]) -> tuple[list[Any], list[Any]]:
        results = _evaluate(step.bodies[0], [*consts, *state, *parts], numbers)
        return results[: len(carry)], results[len(carry) :]

    last, stacked = operation.again(body, _typed(carry, step.eqn.outvars), slices)
    return [*last, *stacked]


def _while(
    operation: jaxprs.While, step: _Step, inputs: list[Any], numbers: Sequence[Any]
) -> list[Any]:
    first, second, start = operation.split(inputs)
    return lax.while_loop(
        lambda state: _evaluate(step.bodies[0], [*first, *state], numbers)[0],
        lambda state: _evaluate(step.bodies[1], [*second, *state], numbers),
        _typed(start, step.eqn.outvars),
    )


def _typed(values: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The state that a loop starts with, of the dtypes that it keeps: it may be a number."""
    return [
        value if isinstance(value, jax.Array) else jnp.asarray(value, var.aval.dtype)
        for value, var in zip(values, variables, strict=False)
    ]


def _cond(step: _Step, inputs: list[Any], numbers: Sequence[Any]) -> list[Any]:
    def branch(body: _Body) -> Callable[[], list[Any]]:
        return lambda: [jnp.asarray(each) for each in _evaluate(body, inputs[1:], numbers)]

    return lax.switch(inputs[0], [branch(body) for body in step.bodies])


def _remat(step: _Step, inputs: list[Any], numbers: Sequence[Any]) -> list[Any]:
    """The same primitive around a body that takes its numbers as arguments.

    `jax.checkpoint` anew would not do: this one was differentiated already, and is what keeps the
    compiler from taking the recomputation for the computation.
    """
    body, (start, stop) = step.bodies[0], step.bodies[0].span
    # What is traced here, and what is too large to stand in a program as a number.
    places = [i for i in range(start, stop) if isinstance(numbers[i], jax.Array | np.ndarray)]
    moving = [numbers[i] for i in places]

    def inside(values: list[Any], given: list[Any]) -> list[Any]:
        own = list(numbers)
        for place, value in zip(places, given, strict=True):
            own[place] = value
        return _evaluate(body, values, own)

    closed = jax.make_jaxpr(inside)(inputs, moving)
    assert not closed.consts, 'arrays of the body are among its numbers'
    return jaxprs.bind(step.eqn, [*inputs, *moving], body=closed.jaxpr)
