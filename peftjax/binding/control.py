"""Control flow: rebuilds JAX's loops, branches and remat around the evaluation of their bodies.

Every handler is `handler(operation, eqn, inputs, context, run)`, with `run` the evaluation of a
program (`peftjax.binding.interpret.run`), and gives the values of the equation's outputs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.binding import operations, tags
from peftjax.binding.context import Context, array_of, plain
from peftjax.binding.operations import Body
from peftjax.binding.views import Packed, Refused, View

Run = Callable[[Body, Sequence[Any], Context], list[Any]]

_NOTHING = ()  # Placeholder for an output that is an unchanged input weight.


def _call(
    operation: operations.Call, eqn: Any, inputs: list[Any], context: Context, run: Run
) -> list[Any]:
    """`jit` and its like are evaluated in place; XLA inlines them in any case."""
    del eqn
    return run(operation.body, inputs, context)


def _pack(inputs: Sequence[Any]) -> list[Any]:
    """Arrays and states of `inputs` as a pytree that may cross a boundary of JAX."""
    return [
        (value.value, value.leaf.state) if isinstance(value, View) else value for value in inputs
    ]


def _unpack(packed: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    return [
        View(dataclasses.replace(old.leaf, state=new[1]), new[0], old.dims)
        if isinstance(old, View)
        else new
        for new, old in zip(packed, like, strict=True)
    ]


def _passed(results: Sequence[Any], entered: Sequence[Any]) -> dict[int, int]:
    """Results that are an unchanged view that entered, since NNX returns its own parameters."""
    return {
        i: j
        for i, result in enumerate(results)
        for j, value in enumerate(entered)
        if isinstance(result, View) and isinstance(value, View) and result.value is value.value
    }


def _remat(
    operation: operations.Remat, eqn: Any, inputs: list[Any], context: Context, run: Run
) -> list[Any]:
    del eqn
    passed: dict[int, int] = {}

    def body(packed: list[Any], modules: Mapping[str, Any]) -> list[Any]:
        inside = dataclasses.replace(context, modules=modules)
        entered = _unpack(packed, inputs)
        results = run(operation.body, entered, inside)
        passed.update(_passed(results, entered))
        return [
            _NOTHING if i in passed else plain(result, 'the result of remat', inside)
            for i, result in enumerate(results)
        ]

    remat = jax.checkpoint(body, prevent_cse=operation.prevent_cse, policy=operation.policy)
    outputs = remat(_pack(inputs), context.modules)
    return [inputs[passed[i]] if i in passed else value for i, value in enumerate(outputs)]


def _cond(
    operation: operations.Cond, eqn: Any, inputs: list[Any], context: Context, run: Run
) -> list[Any]:
    del eqn

    def branch(body: Body) -> Any:
        return lambda: [plain(result, 'cond', context) for result in run(body, inputs[1:], context)]

    return lax.switch(array_of(inputs[0]), [branch(body) for body in operation.bodies])


def _invariant(body: Body, offset: int, carry: Sequence[Any]) -> list[bool]:
    """The views that a loop carries unchanged."""
    return [
        isinstance(value, View) and body.jaxpr.outvars[i] is body.jaxpr.invars[offset + i]
        for i, value in enumerate(carry)
    ]


def _merge_carry(fixed: Sequence[bool], carry: Sequence[Any], moving: Sequence[Any]) -> list[Any]:
    rest = iter(moving)
    return [value if keep else next(rest) for keep, value in zip(fixed, carry, strict=True)]


def _while(
    operation: operations.While, eqn: Any, inputs: list[Any], context: Context, run: Run
) -> list[Any]:
    del eqn
    cond_consts, body_consts, carry = operation.split(inputs)
    fixed = _invariant(operation.body, operation.n_body, carry)
    moving = [
        plain(value, 'the state of a while loop', context)
        for keep, value in zip(fixed, carry, strict=True)
        if not keep
    ]

    def predicate(state: list[Any]) -> Any:
        values = [*cond_consts, *_merge_carry(fixed, carry, state)]
        return run(operation.cond, values, context)[0]

    def step(state: list[Any]) -> list[Any]:
        values = [*body_consts, *_merge_carry(fixed, carry, state)]
        results = run(operation.body, values, context)
        return [
            plain(result, 'the state of a while loop', context)
            for keep, result in zip(fixed, results, strict=True)
            if not keep
        ]

    return _merge_carry(fixed, carry, lax.while_loop(predicate, step, moving))


def _scan(
    operation: operations.Scan, eqn: Any, inputs: list[Any], context: Context, run: Run
) -> list[Any]:
    consts, carry, sliceable = operation.split(inputs)
    slices = [_sliceable(value, context) for value in sliceable]
    fixed = _invariant(operation.body, operation.n_consts, carry)
    moving = [
        plain(value, 'the carry of a scan', context)
        for keep, value in zip(fixed, carry, strict=True)
        if not keep
    ]
    layers = any(isinstance(value, View) for value in slices)
    depth = len(context.scans)
    inner = dataclasses.replace(context, scans=(*context.scans, (operation.length, layers)))
    called = {tag.path for tag in tags.below(eqn)}
    sliced = {
        path: _slice_state(state, 0, operation.length)
        for path, state in context.modules.items()
        if path in called and _is_layered(context, path, depth)
    }
    shared = {path: state for path, state in context.modules.items() if path not in sliced}

    passed: dict[int, int] = {}

    def step(state: list[Any], xs: Any) -> tuple[list[Any], list[Any]]:
        values, module_slices = xs
        inside = dataclasses.replace(inner, modules={**shared, **module_slices})
        entered = _entered(values, slices)
        args = [*consts, *_merge_carry(fixed, carry, state), *entered]
        results = run(operation.body, args, inside)
        passed.update(_passed(results[operation.n_carry :], entered))
        moved = [
            plain(value, 'the carry of a scan', inside)
            for keep, value in zip(fixed, results[: operation.n_carry], strict=True)
            if not keep
        ]
        stacked = [
            _NOTHING if i in passed else plain(value, 'the result of a scan', inside)
            for i, value in enumerate(results[operation.n_carry :])
        ]
        return moved, stacked

    exposed = _exposed(slices, operation.length)
    moved, stacked = operation.again(step, moving, (exposed, sliced))
    stacked = [slices[passed[i]] if i in passed else value for i, value in enumerate(stacked)]
    return [*_merge_carry(fixed, carry, moved), *stacked]


def _is_layered(context: Context, path: str, depth: int) -> bool:
    layered = context.layered.get(path, ())
    return depth < len(layered) and layered[depth]


def _sliceable(value: Any, context: Context) -> Any:
    """Returns `value` if a scan may slice it: its first axis must be one whole axis of the leaf."""
    if not isinstance(value, View):
        return value
    if isinstance(value.value, Packed) and (value.value.steps or not value.value.array.stack):
        value = View(value.leaf, array_of(value), value.dims)
    try:
        axis = value.whole_axis(0)
        if value.leaf.state is not None:
            value.leaf.stack_position(axis)
        return value
    except Refused as refusal:
        context.visitor.refuse(value.leaf, 'scan', str(refusal))
        return array_of(value)


def _slice_state(state: Any, position: int, length: int) -> Any:
    """A rule's arrays and key with the axis to be scanned in front."""
    if state is None:
        return None
    leaves, key = state
    keys = None if key is None else jax.random.split(key, length)
    return jax.tree.map(lambda array: jnp.moveaxis(array, position, 0), leaves), keys


def _exposed(slices: Sequence[Any], length: int) -> list[Any]:
    """What `lax.scan` slices: each array, and for a view its state."""
    exposed = []
    for value in slices:
        if isinstance(value, View):
            state = value.leaf.state
            if state is not None:
                position = value.leaf.stack_position(value.whole_axis(0))
                state = _slice_state(state, position, length)
            exposed.append((value.value, state))
        else:
            exposed.append(value)
    return exposed


def _entered(values: Sequence[Any], slices: Sequence[Any]) -> list[Any]:
    """The slices that the body of a scan sees."""
    return [
        View(old.leaf.without(old.whole_axis(0), new[1]), new[0], old.dims[1:])
        if isinstance(old, View)
        else new
        for new, old in zip(values, slices, strict=True)
    ]


HANDLERS: dict[Any, Callable[..., list[Any]]] = {
    operations.Call: _call,
    operations.Remat: _remat,
    operations.Cond: _cond,
    operations.While: _while,
    operations.Scan: _scan,
}
"""Handlers by the kind of operation. Calls with a custom derivative are not entered."""
