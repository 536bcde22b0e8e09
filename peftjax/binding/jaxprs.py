"""Traced programs: everything in peftjax that depends on a JAX version.

JAX renames primitives and their parameters between releases. This module alone reads them: `read`
describes an equation in names of our own, and the rest of peftjax reads the description.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core as jax_core

from peftjax.binding.operations import (
    Body,
    Broadcast,
    Call,
    Cast,
    Concatenate,
    Cond,
    Convolution,
    Derivative,
    Dot,
    DynamicSlice,
    Gather,
    Name,
    Operation,
    Remat,
    Reshape,
    Same,
    Scan,
    Slice,
    Squeeze,
    Transpose,
    While,
)

TESTED = '0.8.0', '0.12.0'
"""The oldest and the newest JAX release that the tests pass on."""

# The same class as Jaxpr since jax 0.12, which imports it without saying that it exports it.
_ClosedJaxpr = jax_core.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]


class JaxVersionError(RuntimeError):
    """The installed JAX writes a primitive in a form that this release of peftjax cannot read."""


def read(eqn: Any) -> Operation | None:
    """An equation in peftjax's own names; None for a primitive that needs no description.

    Raises:
      JaxVersionError: this JAX lacks a parameter that is read. The message names the primitive.
    """
    reader = _READERS.get(eqn.primitive.name)
    if reader is None:
        return None
    try:
        return reader(eqn.params)
    except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise JaxVersionError(
            f'jax {jax.__version__} writes the primitive {eqn.primitive.name!r} with the '
            f'parameters {sorted(eqn.params)}, which peftjax cannot read '
            f'({type(error).__name__}: {error}). This peftjax is tested with jax {TESTED[0]} to '
            f'{TESTED[1]}: install one of these, or a newer peftjax'
        ) from error


def _slice(params: Mapping[str, Any]) -> Slice:
    starts, limits = params['start_indices'], params['limit_indices']
    sizes = [stop - begin for begin, stop in zip(starts, limits, strict=True)]
    return Slice(starts, sizes, set(params['strides'] or [1]) != {1})


def _dot(params: Mapping[str, Any]) -> Dot:
    contract, batch = params['dimension_numbers']
    return Dot(contract, batch, params['precision'], params['preferred_element_type'])


def _gather(params: Mapping[str, Any]) -> Gather:
    options = ('mode', 'fill_value', 'unique_indices', 'indices_are_sorted')
    return Gather(
        params['dimension_numbers'],
        params['slice_sizes'],
        {option: params[option] for option in options},
    )


def _scan(params: Mapping[str, Any]) -> Scan:
    if 'ft_in' in params:  # since jax 0.12: trees of (constants, carry, slices) with a leaf each
        n_consts, n_carry, _ = map(len, params['ft_in'].unpack())
    else:
        n_consts, n_carry = params['num_consts'], params['num_carry']
    body = _body(params['jaxpr'])
    return Scan(body, params['length'], params['reverse'], params['unroll'], n_consts, n_carry)


def _remat(params: Mapping[str, Any]) -> Remat:
    return Remat(
        _body(params['jaxpr']), params['prevent_cse'], params['policy'], params['differentiated']
    )


def _while(params: Mapping[str, Any]) -> While:
    return While(
        _body(params['cond_jaxpr']),
        _body(params['body_jaxpr']),
        params['cond_nconsts'],
        params['body_nconsts'],
    )


def _body(value: Any) -> Body:
    """A jaxpr with or without constants; since jax 0.12 the two are one class."""
    return Body(value.jaxpr, value.consts) if hasattr(value, 'consts') else Body(value, ())


_READERS: dict[str, Callable[[Mapping[str, Any]], Operation]] = {
    'transpose': lambda params: Transpose(params['permutation']),
    'reshape': lambda params: Reshape(params['dimensions']),
    'squeeze': lambda params: Squeeze(params['dimensions']),
    'broadcast_in_dim': lambda params: Broadcast(params['broadcast_dimensions']),
    'convert_element_type': lambda params: Cast(params['new_dtype']),
    'copy': lambda _: Same(),
    'sharding_constraint': lambda _: Same(),
    'reduce_precision': lambda _: Same(),
    'name': lambda params: Name(params['name']),
    'concatenate': lambda _: Concatenate(),
    'slice': _slice,
    'dynamic_slice': lambda params: DynamicSlice(params['slice_sizes']),
    'dot_general': _dot,
    'gather': _gather,
    'conv_general_dilated': lambda params: Convolution(
        params['dimension_numbers'], params['feature_group_count'], params['batch_group_count']
    ),
    'jit': lambda params: Call(_body(params['jaxpr'])),
    'closed_call': lambda params: Call(_body(params['call_jaxpr'])),
    'eval_jaxpr': lambda params: Call(_body(params['call_jaxpr'])),  # closed_call since jax 0.12
    'custom_jvp_call': lambda params: Derivative(_body(params['call_jaxpr'])),
    'custom_vjp_call': lambda params: Derivative(_body(params['call_jaxpr'])),
    'remat2': _remat,
    'cond': lambda params: Cond(tuple(map(_body, params['branches']))),
    'while': _while,
    'scan': _scan,
}


def bodies(operation: Operation | None) -> tuple[Body, ...]:
    """The programs inside of an operation that `read` describes."""
    if isinstance(operation, Cond):
        return operation.bodies
    return tuple(part for part in operation or () if isinstance(part, Body))


def programs_in(eqn: Any) -> list[Any]:
    """The jaxprs among the parameters of any equation: bodies of loops, branches, calls."""
    return [_body(item).jaxpr for _, item in _parameters(eqn) if _is_program(item)]


def _parameters(eqn: Any) -> Iterator[tuple[str, Any]]:
    for name, value in eqn.params.items():
        for item in value if isinstance(value, tuple | list) else (value,):
            yield name, item


def _is_program(value: Any) -> bool:
    return isinstance(value, _ClosedJaxpr | jax_core.Jaxpr)


def is_literal(var: Any) -> bool:
    """Whether an operand is a literal of the program, with its number in `var.val`."""
    return isinstance(var, jax_core.Literal)


def bind(eqn: Any, operands: Sequence[Any], body: Any = None) -> list[Any]:
    """The results of an equation on `operands`, for a `Remat` with another jaxpr as its `body`."""
    given = eqn.primitive.get_bind_params(eqn.params)
    # JAX before 0.10 hands the functions of custom_vjp and its like apart from the parameters.
    functions, params = given if isinstance(given, tuple) else ((), given)
    if body is not None:
        params = {**params, 'jaxpr': body}
    with eqn.ctx.manager:
        result = eqn.primitive.bind(*functions, *operands, **params)
    return result if eqn.primitive.multiple_results else [result]


def evaluate(
    body: Body, operands: Sequence[Any], step: Callable[[Any, list[Any]], Sequence[Any]]
) -> list[Any]:
    """The results of a program, with `step(eqn, inputs)` for the results of each equation.

    Each value is dropped after its last use, so that evaluation outside `jit` frees memory.
    """
    env: dict[Any, Any] = {}

    def value(var: Any) -> Any:
        return var.val if is_literal(var) else env[var]

    env.update(zip(body.jaxpr.constvars, body.consts, strict=True))
    env.update(zip(body.jaxpr.invars, operands, strict=True))
    last = _last_uses(body.jaxpr)
    for i, eqn in enumerate(body.jaxpr.eqns):
        outputs = step(eqn, [value(var) for var in eqn.invars])
        env.update(zip(eqn.outvars, outputs, strict=True))
        for var in last.get(i, ()):
            del env[var]
    return [value(var) for var in body.jaxpr.outvars]


def _last_uses(jaxpr: Any) -> dict[int, list[Any]]:
    """The variables that each equation is the last to read, without the results."""
    last: dict[Any, int] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        for var in [*eqn.invars, *eqn.outvars]:
            if not is_literal(var):
                last[var] = i
    kept = {var for var in jaxpr.outvars if not is_literal(var)}
    gone: dict[int, list[Any]] = {}
    for var, i in last.items():
        if var not in kept:
            gone.setdefault(i, []).append(var)
    return gone


def unrolled(closed: Any, length: int, unroll: int) -> tuple[Any, int]:
    """`closed` with each scan of `length` trips unrolled, and how many there were.

    A scan inside of a scan that was unrolled stays as it is.
    """
    found, equations = 0, []
    for eqn in closed.jaxpr.eqns:
        operation, params = read(eqn), dict(eqn.params)
        if isinstance(operation, Scan) and operation.length == length:
            params['unroll'] = unroll
            found += 1
        else:
            for name, value in params.items():
                params[name], inside = _unrolled_parameter(value, length, unroll)
                found += inside
        equations.append(eqn.replace(params=params))
    return closed.replace(jaxpr=closed.jaxpr.replace(eqns=equations)), found


def _unrolled_parameter(value: Any, length: int, unroll: int) -> tuple[Any, int]:
    if isinstance(value, _ClosedJaxpr):
        return unrolled(value, length, unroll)
    if _is_program(value):
        closed, found = unrolled(_ClosedJaxpr(value, ()), length, unroll)
        return closed.jaxpr, found
    if isinstance(value, tuple):
        pairs = [_unrolled_parameter(item, length, unroll) for item in value]
        same = all(new is old for (new, _), old in zip(pairs, value, strict=True))
        return value if same else tuple(new for new, _ in pairs), sum(n for _, n in pairs)
    return value, 0
