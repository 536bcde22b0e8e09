"""Flax Linen modules as pure functions, plain and with every call tagged."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core.scope import LazyRng

from peftjax.binding import attention, tags
from peftjax.core.roles import Roles


def split_variables(variables: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """`params` and the other collections, without Flax's boxes of metadata.

    A tree without `'params'` is taken as params.
    """
    variables = nn.meta.unbox(variables)
    if 'params' not in variables:
        return variables, {}
    state = {name: value for name, value in variables.items() if name != 'params'}
    return variables['params'], state


def plain_apply(module: nn.Module, collections: dict[str, Any]) -> Callable[..., Any]:
    """`apply(params, *args, state=None, **kwargs)` of an unbound module.

    `rngs`, `mutable`, `method` and `capture_intermediates` reach `Module.apply` as they are.
    """

    def apply(params: Any, *args: Any, state: Any = None, **kwargs: Any) -> Any:
        others = collections if state is None else state
        return module.apply({'params': params, **others}, *args, **kwargs)

    return apply


def tagged_apply(apply: Callable[..., Any], roles: Roles | None) -> Callable[..., Any]:
    """`apply` with inputs and outputs of every module call marked."""

    def tagged(params: Any, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(_Tagger(roles or Roles())):
            return apply(params, *args, **kwargs)

    return tagged


class _Tagger:
    """An interceptor of module calls. A lifted module (`scan`, `remat`) calls a twin of the same
    path. Only the innermost twin, which sees one layer, is marked."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self._marked_within: dict[str, bool] = {}

    def __call__(
        self,
        call: Callable[..., Any],
        args: Any,
        kwargs: Any,
        context: nn.module.InterceptorContext,
    ) -> Any:
        module, path = context.module, '/'.join(context.module.path)
        if context.method_name != '__call__' or not path:
            return call(*args, **kwargs)
        if self._roles.matches('attention', path):
            return _tagged_core(module, call, args, kwargs, path)
        kind = type(module).__name__
        before = self._marked_within.get(path)
        self._marked_within[path] = False
        signature = attention.signature_of(type(module))
        args, kwargs = tags.mark_inputs(signature, args, kwargs, kind, path)
        with _exchanged(module, path):
            output = call(*args, **kwargs)
        if not self._marked_within[path]:
            output = tags.mark_output(output, kind, path)
        self._marked_within[path] = True
        if before is None:
            del self._marked_within[path]
        return output


def _tagged_core(module: nn.Module, call: Any, args: Any, kwargs: Any, path: str) -> Any:
    """The marked call of a core. Its dropout gets a key, so that the call can be repeated."""
    output = call(*args, **kwargs)
    if module.variables:
        raise ValueError(
            f'the attention core {path!r} holds {sorted(module.variables)}; a core must have no '
            'parameters and no state'
        )
    # This leaves the core's own keys the same as without a method.
    streams = {} if module.scope is None else module.scope.rngs
    found = streams.get('dropout')
    rng = None if found is None else LazyRng.create(found, 'peftjax').as_jax_rng()
    signature = attention.signature_of(type(module))
    core = _Core(module.clone(parent=None, name=None))
    kind = type(module).__name__
    return attention.mark(output, signature, core, args, kwargs, rng=rng, kind=kind, path=path)


@dataclasses.dataclass(frozen=True)
class _Core:
    """A module without parameters, as a function of its arguments."""

    module: nn.Module

    def __call__(self, rng: jax.Array | None, *args: Any, **kwargs: Any) -> jax.Array:
        rngs = None if rng is None else {'dropout': rng}
        output: Any = self.module.apply({}, *args, **kwargs, rngs=rngs)
        return output


@contextlib.contextmanager
def _exchanged(module: nn.Module, path: str) -> Iterator[None]:
    """Marks the attention function of Flax's attention module during its call."""
    if not isinstance(module, nn.MultiHeadDotProductAttention):
        yield
        return
    function = module.attention_fn
    # Fields of a bound module cannot be assigned; this one is put back.
    object.__setattr__(module, 'attention_fn', attention.marked(function, f'{path}/attention_fn'))
    try:
        yield
    finally:
        object.__setattr__(module, 'attention_fn', function)
