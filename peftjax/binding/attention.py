"""Attention cores: calls that a rule may repeat with more keys.

A core is a module without parameters, or the function that one of Flax's attention modules calls.
The static part of its call is stored here under a number, and the tags of the call have this
number. So the core can be called again wherever the traced program is evaluated.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.binding import calls, tags
from peftjax.core.use import AttentionUse

_OWN = ('query', 'key', 'value')
_KNOWN = (*_OWN, 'mask', 'bias', 'prefix_bias')
_STARRED = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
Core = Callable[..., jax.Array]
"""`core(rng, query, key, value, ...)`: `rng` is a key for its own dropout, or None."""


@dataclasses.dataclass(frozen=True)
class CoreCall:
    """The static part of one call of a core.

    Attributes:
      core: the function that computes it.
      structure: of its arguments by name, and of the key of its dropout.
    """

    core: Core
    structure: calls.Structure


_NUMBERS: dict[CoreCall, int] = {}
_CALLS: list[CoreCall] = []


def mark(
    output: Any,
    signature: inspect.Signature,
    core: Core,
    args: Any,
    kwargs: Any,
    *,
    rng: Any,
    kind: str,
    path: str,
) -> Any:
    """The output of a core, marked together with the arrays of its call.

    Args:
      output: what the core returned.
      signature: of the core, whose first three parameters are query, key and value.
      core: hashable, so that equal calls share a number.
      args, kwargs: of the call.
      rng: a key for the core's dropout, or None.
      kind, path: of the module.
    """
    bound = signature.bind(*args, **kwargs)
    names = [name for name, each in signature.parameters.items() if each.kind not in _STARRED]
    own = dict(zip(names[:3], _OWN, strict=True))
    given = [(name, bound.arguments[name]) for name in names if name in bound.arguments]
    named = {own.get(name, name): value for name, value in given}
    named.pop('module', None)  # Flax's own functions would write weights into it.
    call = calls.split((named, rng), {})
    found = CoreCall(core, call.structure)
    if found not in _NUMBERS:
        _NUMBERS[found] = len(_CALLS)
        _CALLS.append(found)
    # NumPy numbers are operands here too.
    tags.mark_arrays(map(_array, call.arrays), kind, path)
    return tags.mark_output(output, kind, path, _NUMBERS[found])


def _array(value: Any) -> jax.Array:
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def marked(function: Callable[..., Any], path: str) -> Callable[..., Any]:
    """The attention function of a module of Flax, with its calls marked as those of `path`."""

    @functools.wraps(function)
    def attend(*args: Any, **kwargs: Any) -> Any:
        output = function(*args, **kwargs)
        signature = inspect.signature(function)
        core = _Function(function)
        return mark(output, signature, core, args, kwargs, rng=None, kind='attention', path=path)

    return attend


@dataclasses.dataclass(frozen=True)
class _Function:
    function: Callable[..., Any]

    def __call__(self, rng: None, *args: Any, **kwargs: Any) -> jax.Array:
        del rng  # It is a separate argument.
        return self.function(*args, **kwargs)


@functools.cache
def signature_of(cls: type) -> inspect.Signature:
    """The signature of `__call__` of a class of modules, without `self`."""
    return without_first(inspect.signature(cls.__call__))


def without_first(signature: inspect.Signature) -> inspect.Signature:
    """Of a method without `self`, of a function without its parameters of the model."""
    return signature.replace(parameters=tuple(signature.parameters.values())[1:])


def use_of(number: int, arrays: tuple[Any, ...], path: str) -> AttentionUse:
    """The call with this number, on these arrays.

    Raises:
      ValueError: an array argument that belongs to each key, or that is not known.
    """
    call = _CALLS[number]
    (named, rng), _ = call.structure.arguments(arrays)
    mask = named.get('mask')
    added = jnp.issubdtype(getattr(mask, 'dtype', bool), jnp.floating)
    if added and not isinstance(call.core, _Function):
        raise ValueError(
            f'the attention core {path!r} is called with a mask of {mask.dtype}, but a mask is '
            'booleans, True for a key that is seen; pass numbers to add to scores as bias'
        )
    others = {name: value for name, value in named.items() if name not in _KNOWN}
    unknown = [name for name, value in others.items() if _is_unknown(name, value)]
    if unknown:
        raise ValueError(
            f'the attention core {path!r} is called with {unknown} besides query, key, value, mask '
            'and bias, and it is not known whether these have an entry for each key; rename them, '
            'or leave the core out of the targets'
        )

    if others.get('is_causal'):
        others['is_causal'] = False
        causal = jnp.tril(jnp.ones((named['query'].shape[-3], named['key'].shape[-3]), bool))
        mask = causal[None, None] if mask is None else (mask == 1) & causal[None, None]

    def core(query: Any, key: Any, value: Any, mask: Any, bias: Any) -> jax.Array:
        given = dict(others)
        for name, each in (('mask', mask), ('bias', bias)):
            if each is not None or name in named:
                given[name] = each
        return call.core(rng, query, key, value, **given)

    return AttentionUse(
        named['query'],
        named['key'],
        named['value'],
        mask,
        named.get('bias'),
        core,
        core,
        named.get('prefix_bias'),
    )


def _is_unknown(name: str, value: Any) -> bool:
    return name != 'dropout_rng' and any(hasattr(leaf, 'shape') for leaf in jax.tree.leaves(value))
