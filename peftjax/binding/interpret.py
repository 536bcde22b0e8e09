"""Evaluates a jaxpr while following weight leaves through views and control flow.

The visitor decides what happens at a use, at a refusal and at a module's tag: the visitor of
`discover` records, that of `adapt` applies rules.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from peftjax.binding import control, jaxprs, operations, tags, views
from peftjax.binding.context import Called, Context, array_of
from peftjax.binding.convolution import Conv
from peftjax.binding.dot import Dot
from peftjax.binding.jaxprs import bind
from peftjax.binding.lookup import Lookup
from peftjax.binding.operations import Body, Operation
from peftjax.binding.uses import Contraction
from peftjax.binding.views import Packed, Refused, View


def run(body: Body, operands: Sequence[Any], context: Context) -> list[Any]:
    """Values of the outputs; some may be views."""
    calls: dict[str, dict[int, Any]] = {}

    def step(eqn: Any, inputs: list[Any]) -> list[Any]:
        operation = jaxprs.read(eqn)
        tag = tags.read(operation)
        if tag:
            return [_tagged(tag, inputs[0], calls, context)]
        return _step(operation, eqn, inputs, context)

    return jaxprs.evaluate(body, operands, step)


def _tagged(tag: tags.Tag, value: Any, calls: dict[str, dict[int, Any]], context: Context) -> Any:
    if tag.point == 'in':
        calls.setdefault(tag.path, {})[tag.number] = array_of(value)
        return value
    inputs = calls.pop(tag.path, {})
    if isinstance(value, View):
        context.visitor.opaque(tag, 'it returns a weight')
        return value
    around = max((path for path in calls if tag.path.startswith(f'{path}/')), key=len, default='')
    called = Called(tag, _in_order(inputs), _in_order(calls.get(around, {})), value)
    return context.visitor.module(called, context)


def _in_order(arguments: Mapping[int, Any]) -> tuple[Any, ...]:
    return tuple(arguments[i] for i in sorted(arguments))


def _step(operation: Operation | None, eqn: Any, inputs: list[Any], context: Context) -> list[Any]:
    followed = [i for i, value in enumerate(inputs) if isinstance(value, View)]
    inside = tags.below(eqn)
    if type(operation) in control.HANDLERS and (followed or inside):
        return control.HANDLERS[type(operation)](operation, eqn, inputs, context, run)
    name = eqn.primitive.name
    for tag in inside:
        context.visitor.opaque(tag, f'it is called inside {name}, which cannot be entered')
    if not followed:
        return bind(eqn, inputs)
    try:
        return _follow(operation, eqn, inputs, followed, context)
    except Refused as refusal:
        shape = eqn.outvars[0].aval.shape
        for i in followed:
            spread = _is_spread(operation, inputs[i], shape)
            context.visitor.refuse(inputs[i].leaf, name, str(refusal), spread)
        return bind(eqn, [array_of(value) for value in inputs])


def _is_spread(operation: Operation | None, view: View, shape: tuple[int, ...]) -> bool:
    """Whether an operation broadcasts the view along new axes, as it does with a bias."""
    if isinstance(operation, operations.Broadcast):
        return True
    if isinstance(operation, operations.Concatenate):
        return False
    pairs = zip(shape, view.dims, strict=False)
    return len(shape) == len(view.dims) and any(size > 1 and not group for size, group in pairs)


def _follow(
    operation: Operation | None, eqn: Any, inputs: list[Any], followed: list[int], context: Context
) -> list[Any]:
    if len(followed) > 1:
        raise Refused(f'it meets another weight in {eqn.primitive.name}')
    view, position = inputs[followed[0]], followed[0]
    if type(operation) in views.RULES:
        return [views.RULES[type(operation)](view, _moved(eqn, inputs, position), operation)]
    if isinstance(operation, operations.Slice) and not operation.strided:
        value = _moved(eqn, inputs, position)
        return [views.sliced(view, value, operation.sizes, operation.starts)]
    if isinstance(operation, operations.DynamicSlice) and followed == [0]:
        value = _moved(eqn, inputs, position)
        return [views.sliced(view, value, operation.sizes, inputs[1:])]
    contraction = _contraction(operation, eqn, view, position, inputs)
    if isinstance(contraction, Lookup) and contraction.picks_stack():
        return [contraction.picked(_moved(eqn, inputs, position))]

    def use(value: Any, state: Any, others: list[Any]) -> jax.Array:
        opened = View(dataclasses.replace(view.leaf, state=state), value, view.dims)
        opened = dataclasses.replace(opened, value=array_of(opened))
        arrays = [*others[:position], opened.value, *others[position:]]
        return context.visitor.use(
            opened.leaf,
            _contraction(operation, eqn, opened, position, arrays),
            lambda: bind(eqn, arrays)[0],
        )

    # The backward pass dequantises a weight again, so that the first result need not be kept.
    use = jax.checkpoint(use) if isinstance(view.value, Packed) else use
    return [use(view.value, view.leaf.state, [*inputs[:position], *inputs[position + 1 :]])]


def _moved(eqn: Any, inputs: list[Any], position: int) -> Any:
    """The result of the equation on the view among its inputs; a quantised view is read first."""

    def step(array: jax.Array) -> jax.Array:
        return bind(eqn, [*inputs[:position], array, *inputs[position + 1 :]])[0]

    value = inputs[position].value
    if isinstance(value, Packed):
        return value.then(step, eqn.outvars[0].aval.shape)
    return step(value)


def _contraction(
    operation: Operation | None, eqn: Any, view: View, position: int, arrays: list[Any]
) -> Contraction:
    if isinstance(operation, operations.Dot):
        return Dot(operation, eqn, view, arrays[1 - position], position)
    if isinstance(operation, operations.Gather) and position == 0:
        return Lookup(operation, eqn, view, arrays[1])
    if isinstance(operation, operations.Convolution) and position == 1:
        return Conv(operation, eqn, view, arrays[0])
    raise Refused(f'it enters {eqn.primitive.name}')
