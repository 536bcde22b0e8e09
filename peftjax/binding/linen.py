"""Flax Linen modules as pure functions, plain and with every call tagged."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from peftjax.binding import tags


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


def tagged_apply(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` with inputs and outputs of every module call marked."""

    def tagged(params: Any, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(_Tagger()):
            return apply(params, *args, **kwargs)

    return tagged


class _Tagger:
    """An interceptor. A lifted module (`scan`, `remat`) calls a twin of the same path: only the
    innermost of them, which sees one layer, is marked."""

    def __init__(self) -> None:
        self._marked_within: dict[str, bool] = {}

    def __call__(
        self,
        call: Callable[..., Any],
        args: Any,
        kwargs: Any,
        context: nn.module.InterceptorContext,
    ) -> Any:
        path = '/'.join(context.module.path)
        if context.method_name != '__call__' or not path:
            return call(*args, **kwargs)
        kind = type(context.module).__name__
        before = self._marked_within.get(path)
        self._marked_within[path] = False
        args, kwargs = tags.mark_inputs((args, kwargs), kind, path)
        output = call(*args, **kwargs)
        if not self._marked_within[path]:
            output = tags.mark_output(output, kind, path)
        self._marked_within[path] = True
        if before is None:
            del self._marked_within[path]
        return output
