"""Evaluates a jaxpr while following weight leaves through views and control flow.

What happens at a use, at a refusal and at a module's tag is the visitor's business: `discover`
records, `adapt` applies rules. What depends on JAX's primitives and their parameters stands in this
file, in `control.py`, `views.py` and the files of the three kinds of use.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend import core as jax_core

from peftjax.binding import control, tags, views
from peftjax.binding.convolution import Conv
from peftjax.binding.dot import Dot
from peftjax.binding.frames import Frame, array_of
from peftjax.binding.lookup import Lookup
from peftjax.binding.uses import Contraction
from peftjax.binding.views import Packed, Refused, View


def run(
    jaxpr: jax_core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], frame: Frame
) -> list[Any]:
    """Values of the outputs; some may be views."""
    env: dict[Any, Any] = {}
    calls: dict[str, dict[int, Any]] = {}

    def read(var: Any) -> Any:
        return var.val if isinstance(var, jax_core.Literal) else env[var]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    last = _last_uses(jaxpr)
    for i, eqn in enumerate(jaxpr.eqns):
        inputs = [read(var) for var in eqn.invars]
        tag = tags.read(eqn)
        outputs = [_tagged(tag, inputs[0], calls, frame)] if tag else _step(eqn, inputs, frame)
        env.update(zip(eqn.outvars, outputs, strict=True))
        for var in last.get(i, ()):
            del env[var]
    return [read(var) for var in jaxpr.outvars]


def _last_uses(jaxpr: jax_core.Jaxpr) -> dict[int, list[Any]]:
    """Variables by the last equation that reads them, so that eager evaluation frees memory."""
    last: dict[Any, int] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        for var in [*eqn.invars, *eqn.outvars]:
            if not isinstance(var, jax_core.Literal):
                last[var] = i
    kept = {var for var in jaxpr.outvars if not isinstance(var, jax_core.Literal)}
    gone: dict[int, list[Any]] = {}
    for var, i in last.items():
        if var not in kept:
            gone.setdefault(i, []).append(var)
    return gone


def _tagged(tag: tags.Tag, value: Any, calls: dict[str, dict[int, Any]], frame: Frame) -> Any:
    if tag.point == 'in':
        calls.setdefault(tag.path, {})[tag.index] = array_of(value)
        return value
    inputs = calls.pop(tag.path, {})
    if isinstance(value, View):
        frame.visitor.opaque(tag, 'it returns a weight')
        return value
    around = max((path for path in calls if tag.path.startswith(f'{path}/')), key=len, default='')
    return frame.visitor.module(
        tag, _in_order(inputs), _in_order(calls.get(around, {})), value, frame
    )


def _in_order(arguments: Mapping[int, Any]) -> tuple[Any, ...]:
    return tuple(arguments[i] for i in sorted(arguments))


def _step(eqn: Any, inputs: list[Any], frame: Frame) -> list[Any]:
    followed = [i for i, value in enumerate(inputs) if isinstance(value, View)]
    name = eqn.primitive.name
    if name in control.HANDLERS and (followed or tags.below(eqn)):
        return control.HANDLERS[name](eqn, inputs, frame, run)
    for tag in tags.below(eqn):
        frame.visitor.opaque(tag, f'it is called inside {name}, which cannot be entered')
    if not followed:
        return bind(eqn, inputs)
    try:
        return _follow(eqn, inputs, followed, frame)
    except Refused as refusal:
        for i in followed:
            spread = _is_spread(name, inputs[i], eqn.outvars[0].aval.shape)
            frame.visitor.refuse(inputs[i].leaf, name, str(refusal), spread)
        return bind(eqn, [array_of(value) for value in inputs])


def _is_spread(name: str, view: View, shape: tuple[int, ...]) -> bool:
    """Whether an operation repeats the view along axes it does not have, as it does a bias."""
    if name in ('broadcast_in_dim', 'concatenate'):
        return name == 'broadcast_in_dim'
    pairs = zip(shape, view.dims, strict=False)
    return len(shape) == len(view.dims) and any(size > 1 and not group for size, group in pairs)


def _follow(eqn: Any, inputs: list[Any], followed: list[int], frame: Frame) -> list[Any]:
    name = eqn.primitive.name
    if len(followed) > 1:
        raise Refused(f'it meets another weight in {name}')
    view, position = inputs[followed[0]], followed[0]
    if name in views.RULES:
        return [views.RULES[name](view, _moved(eqn, inputs, position), eqn.params)]
    if name == 'slice' and set(eqn.params['strides'] or [1]) == {1}:
        start, limit = eqn.params['start_indices'], eqn.params['limit_indices']
        sizes = [stop - begin for begin, stop in zip(start, limit, strict=True)]
        return [views.sliced(view, _moved(eqn, inputs, position), sizes, start)]
    if name == 'dynamic_slice' and followed == [0]:
        value = _moved(eqn, inputs, position)
        return [views.sliced(view, value, eqn.params['slice_sizes'], inputs[1:])]
    contraction = _contraction(eqn, view, position, inputs)
    if isinstance(contraction, Lookup) and contraction.picks_stack():
        return [contraction.picked(_moved(eqn, inputs, position))]

    def use(value: Any, state: Any, others: list[Any]) -> jax.Array:
        opened = View(dataclasses.replace(view.leaf, state=state), value, view.dims)
        opened = dataclasses.replace(opened, value=array_of(opened))
        arrays = [*others[:position], opened.value, *others[position:]]
        return frame.visitor.use(
            opened.leaf,
            _contraction(eqn, opened, position, arrays),
            lambda: bind(eqn, arrays)[0],
        )

    # The backward pass reads a quantised weight once more: what was read is not kept.
    use = jax.checkpoint(use) if isinstance(view.value, Packed) else use
    return [use(view.value, view.leaf.state, [*inputs[:position], *inputs[position + 1 :]])]


def _moved(eqn: Any, inputs: list[Any], position: int) -> Any:
    """What the equation makes of the view among its inputs; of a quantised one, once it is read."""

    def step(array: jax.Array) -> jax.Array:
        return bind(eqn, [*inputs[:position], array, *inputs[position + 1 :]])[0]

    value = inputs[position].value
    if isinstance(value, Packed):
        return value.then(step, eqn.outvars[0].aval.shape)
    return step(value)


def _contraction(eqn: Any, view: View, position: int, arrays: list[Any]) -> Contraction:
    name = eqn.primitive.name
    if name == 'dot_general':
        return Dot(eqn, view, arrays[1 - position], position)
    if name == 'gather' and position == 0:
        return Lookup(eqn, view, arrays[1])
    if name == 'conv_general_dilated' and position == 1:
        return Conv(eqn, view, arrays[0])
    raise Refused(f'it enters {name}')


def bind(eqn: Any, arrays: Sequence[Any]) -> list[Any]:
    """The equation as the model has it."""
    given = eqn.primitive.get_bind_params(eqn.params)
    # JAX before 0.10 hands the functions of custom_vjp and its like apart from the parameters.
    functions, params = given if isinstance(given, tuple) else ((), given)
    with eqn.ctx.manager:
        result = eqn.primitive.bind(*functions, *arrays, **params)
    return result if eqn.primitive.multiple_results else [result]
