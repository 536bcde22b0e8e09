"""Evaluates a jaxpr while following weight leaves through views and control flow.

What happens at a use, at a refusal and at a module's tag is the visitor's business: `discover`
records, `adapt` applies rules. Everything that depends on JAX's primitives and their parameters
stands in this file, `views.py` and `uses.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jax_core

from peftjax.binding import tags, uses, views
from peftjax.binding.views import Leaf, Refused, View

Contraction = uses.Dot | uses.Lookup | uses.Conv


class Visitor(Protocol):
    """What to do at the places of interest."""

    def use(self, leaf: Leaf, contraction: Contraction, plain: Any) -> Any:
        """The result of a use; `plain()` is what the model computes."""
        ...

    def refuse(self, leaf: Leaf, operation: str, reason: str, spread: bool = False) -> None:
        """A leaf enters an operation that cannot be followed; `spread` if that broadcasts it."""
        ...

    def module(
        self, tag: tags.Tag, inputs: tuple[jax.Array, ...], output: jax.Array, frame: 'Frame'
    ) -> jax.Array:
        """The output in force of a module."""
        ...

    def opaque(self, tag: tags.Tag, reason: str) -> None:
        """A call of a module that cannot take a rule."""
        ...


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where the evaluation stands.

    Attributes:
      visitor: what to do at the places of interest.
      scans: for each scan entered, `(length, whether it runs over layers)`.
      modules: state of the module rules at this slice of their stacks, by path.
      depths: for each module rule, which of the scans around it run over layers.
    """

    visitor: Visitor
    scans: tuple[tuple[int, bool], ...] = ()
    modules: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layered: Mapping[str, tuple[bool, ...]] = dataclasses.field(default_factory=dict)


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
        calls.setdefault(tag.path, {})[tag.index] = _array(value)
        return value
    inputs = calls.pop(tag.path, {})
    if isinstance(value, View):
        frame.visitor.opaque(tag, 'it returns a weight')
        return value
    return frame.visitor.module(tag, tuple(inputs[i] for i in sorted(inputs)), value, frame)


def plain(value: Any, operation: str, frame: Frame) -> Any:
    """`value` as an array; a view is refused."""
    if not isinstance(value, View):
        return value
    frame.visitor.refuse(value.leaf, operation, f'it enters {operation}')
    return value.value


def _step(eqn: Any, inputs: list[Any], frame: Frame) -> list[Any]:
    followed = [i for i, value in enumerate(inputs) if isinstance(value, View)]
    name = eqn.primitive.name
    if name in _CONTROL and (followed or _tags_below(eqn)):
        return _CONTROL[name](eqn, inputs, frame)
    for tag in _tags_below(eqn):
        frame.visitor.opaque(tag, f'it is called inside {name}, which cannot be entered')
    if not followed:
        return bind(eqn, inputs)
    try:
        return _follow(eqn, inputs, followed, frame)
    except Refused as refusal:
        for i in followed:
            spread = eqn.outvars[0].aval.size > inputs[i].value.size
            frame.visitor.refuse(inputs[i].leaf, name, str(refusal), spread)
        return bind(eqn, [_array(value) for value in inputs])


def _follow(eqn: Any, inputs: list[Any], followed: list[int], frame: Frame) -> list[Any]:
    name, arrays = eqn.primitive.name, [_array(value) for value in inputs]
    if len(followed) > 1:
        raise Refused(f'it meets another weight in {name}')
    view = inputs[followed[0]]
    if name in views.RULES:
        return [views.RULES[name](view, bind(eqn, arrays)[0], eqn.params)]
    if name == 'slice' and set(eqn.params['strides'] or [1]) == {1}:
        start, limit = eqn.params['start_indices'], eqn.params['limit_indices']
        sizes = [stop - begin for begin, stop in zip(start, limit, strict=True)]
        return [views.sliced(view, bind(eqn, arrays)[0], sizes, start)]
    if name == 'dynamic_slice' and followed == [0]:
        return [views.sliced(view, bind(eqn, arrays)[0], eqn.params['slice_sizes'], arrays[1:])]
    contraction = _contraction(eqn, view, followed[0], arrays)
    if isinstance(contraction, uses.Lookup) and contraction.picks_stack():
        return [contraction.picked(bind(eqn, arrays)[0])]
    return [frame.visitor.use(view.leaf, contraction, lambda: bind(eqn, arrays)[0])]


def _contraction(eqn: Any, view: View, position: int, arrays: list[Any]) -> Contraction:
    name = eqn.primitive.name
    if name == 'dot_general':
        return uses.Dot(eqn, view, arrays[1 - position], position)
    if name == 'gather' and position == 0:
        return uses.Lookup(eqn, view, arrays[1])
    if name == 'conv_general_dilated' and position == 1:
        return uses.Conv(eqn, view, arrays[0])
    raise Refused(f'it enters {name}')


def bind(eqn: Any, arrays: Sequence[Any]) -> list[Any]:
    """The equation as the model has it."""
    given = eqn.primitive.get_bind_params(eqn.params)
    # JAX before 0.10 hands the functions of custom_vjp and its like apart from the parameters.
    functions, params = given if isinstance(given, tuple) else ((), given)
    with eqn.ctx.manager:
        result = eqn.primitive.bind(*functions, *arrays, **params)
    return result if eqn.primitive.multiple_results else [result]


def _array(value: Any) -> Any:
    return value.value if isinstance(value, View) else value


def _tags_below(eqn: Any) -> list[tags.Tag]:
    """Tags of module outputs in the jaxprs of an equation, at any depth."""
    return [tag for jaxpr in _jaxprs(eqn.params) for inner in jaxpr.eqns for tag in _tags_of(inner)]


def _tags_of(eqn: Any) -> list[tags.Tag]:
    tag = tags.read(eqn)
    return ([tag] if tag and tag.point == 'out' else []) + _tags_below(eqn)


def _jaxprs(params: Mapping[str, Any]) -> list[jax_core.Jaxpr]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, jax_core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, jax_core.Jaxpr):
                found.append(item)
    return found


# --- control flow -------------------------------------------------------------------------------


def _call(eqn: Any, inputs: list[Any], frame: Frame) -> list[Any]:
    """`jit` and its like are evaluated in place; XLA inlines them in any case."""
    closed = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
    return run(closed.jaxpr, closed.consts, inputs, frame)


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
    """Results that are an entered view unchanged, as NNX returns the parameters it was given."""
    return {
        i: j
        for i, result in enumerate(results)
        for j, value in enumerate(entered)
        if isinstance(result, View) and isinstance(value, View) and result.value is value.value
    }


def _remat(eqn: Any, inputs: list[Any], frame: Frame) -> list[Any]:
    passed: dict[int, int] = {}

    def body(packed: list[Any], modules: Mapping[str, Any]) -> list[Any]:
        inside = dataclasses.replace(frame, modules=modules)
        entered = _unpack(packed, inputs)
        results = run(eqn.params['jaxpr'], (), entered, inside)
        passed.update(_passed(results, entered))
        return [
            _array(result) if i in passed else plain(result, 'the result of remat', inside)
            for i, result in enumerate(results)
        ]

    remat = jax.checkpoint(body, prevent_cse=eqn.params['prevent_cse'], policy=eqn.params['policy'])
    outputs = remat(_pack(inputs), frame.modules)
    return [inputs[passed[i]] if i in passed else value for i, value in enumerate(outputs)]


def _cond(eqn: Any, inputs: list[Any], frame: Frame) -> list[Any]:
    def branch(closed: Any) -> Any:
        return lambda: [
            plain(result, 'cond', frame)
            for result in run(closed.jaxpr, closed.consts, inputs[1:], frame)
        ]

    return lax.switch(_array(inputs[0]), [branch(closed) for closed in eqn.params['branches']])


def _invariant(body: Any, offset: int, carry: Sequence[Any]) -> list[bool]:
    """Which views a loop carries along unchanged."""
    return [
        isinstance(value, View) and body.outvars[i] is body.invars[offset + i]
        for i, value in enumerate(carry)
    ]


def _merge_carry(fixed: Sequence[bool], carry: Sequence[Any], moving: Sequence[Any]) -> list[Any]:
    rest = iter(moving)
    return [value if keep else next(rest) for keep, value in zip(fixed, carry, strict=True)]


def _while(eqn: Any, inputs: list[Any], frame: Frame) -> list[Any]:
    cond, body = eqn.params['cond_jaxpr'], eqn.params['body_jaxpr']
    n_cond, n_body = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    cond_consts, body_consts = inputs[:n_cond], inputs[n_cond : n_cond + n_body]
    carry = inputs[n_cond + n_body :]
    fixed = _invariant(body.jaxpr, n_body, carry)
    moving = [
        plain(value, 'the state of a while loop', frame)
        for keep, value in zip(fixed, carry, strict=True)
        if not keep
    ]

    def predicate(state: list[Any]) -> Any:
        values = [*cond_consts, *_merge_carry(fixed, carry, state)]
        return run(cond.jaxpr, cond.consts, values, frame)[0]

    def step(state: list[Any]) -> list[Any]:
        values = [*body_consts, *_merge_carry(fixed, carry, state)]
        results = run(body.jaxpr, body.consts, values, frame)
        return [
            plain(result, 'the state of a while loop', frame)
            for keep, result in zip(fixed, results, strict=True)
            if not keep
        ]

    return _merge_carry(fixed, carry, lax.while_loop(predicate, step, moving))


def _scan(eqn: Any, inputs: list[Any], frame: Frame) -> list[Any]:
    params, body = eqn.params, eqn.params['jaxpr']
    n_consts, n_carry = params['num_consts'], params['num_carry']
    consts, carry = inputs[:n_consts], inputs[n_consts : n_consts + n_carry]
    slices = [_sliceable(value, frame) for value in inputs[n_consts + n_carry :]]
    fixed = _invariant(body.jaxpr, n_consts, carry)
    moving = [
        plain(value, 'the carry of a scan', frame)
        for keep, value in zip(fixed, carry, strict=True)
        if not keep
    ]
    layers = any(isinstance(value, View) for value in slices)
    depth = len(frame.scans)
    inner = dataclasses.replace(frame, scans=(*frame.scans, (params['length'], layers)))
    sliced = {
        path: _slice_state(state, 0, params['length'])
        for path, state in frame.modules.items()
        if _is_layered(frame, path, depth)
    }
    shared = {path: state for path, state in frame.modules.items() if path not in sliced}

    passed: dict[int, int] = {}

    def step(state: list[Any], xs: Any) -> tuple[list[Any], list[Any]]:
        values, module_slices = xs
        inside = dataclasses.replace(inner, modules={**shared, **module_slices})
        entered = _entered(values, slices)
        args = [*consts, *_merge_carry(fixed, carry, state), *entered]
        results = run(body.jaxpr, body.consts, args, inside)
        passed.update(_passed(results[n_carry:], entered))
        moved = [
            plain(value, 'the carry of a scan', inside)
            for keep, value in zip(fixed, results[:n_carry], strict=True)
            if not keep
        ]
        stacked = [
            _array(value) if i in passed else plain(value, 'the result of a scan', inside)
            for i, value in enumerate(results[n_carry:])
        ]
        return moved, stacked

    moved, stacked = lax.scan(
        step,
        moving,
        (_exposed(slices, params['length']), sliced),
        length=params['length'],
        reverse=params['reverse'],
        unroll=params['unroll'],
    )
    stacked = [slices[passed[i]] if i in passed else value for i, value in enumerate(stacked)]
    return [*_merge_carry(fixed, carry, moved), *stacked]


def _is_layered(frame: Frame, path: str, depth: int) -> bool:
    layered = frame.layered.get(path, ())
    return depth < len(layered) and layered[depth]


def _sliceable(value: Any, frame: Frame) -> Any:
    """`value` if a scan may slice it: its first axis must be one whole axis of the leaf."""
    if not isinstance(value, View):
        return value
    try:
        axis = value.whole_axis(0)
        if value.leaf.state is not None:
            value.leaf.stack_position(axis)
        return value
    except Refused as refusal:
        frame.visitor.refuse(value.leaf, 'scan', str(refusal))
        return value.value


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


_CONTROL = {
    'jit': _call,
    'pjit': _call,
    'closed_call': _call,
    'core_call': _call,
    'remat2': _remat,
    'remat': _remat,
    'checkpoint': _remat,
    'cond': _cond,
    'while': _while,
    'scan': _scan,
}
