"""Flax NNX modules as pure functions, plain and with every call tagged."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from peftjax.binding import tags

# A static attribute of our twins' submodules, so that NNX's own transforms carry it along.
_PATH = 'peftjax_path'


def split_module(module: nnx.Module) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """`(params, apply, tagged apply)` of a module, which is read once and never changed.

    `apply(params, *args, state=None, rngs=None, mutable=False, method='__call__', **kwargs)`
    rebuilds the module at each call: `state` stands in for what is not a parameter (batch
    statistics, caches, random streams), `rngs` is a key that reseeds its random streams, and
    `mutable=True` returns `(output, new state)`.
    """
    graphdef, params, state = nnx.split(module, nnx.Param, ...)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    parts = graphdef, shapes, state
    return (
        nnx.to_pure_dict(params),
        functools.partial(_apply, parts, nnx.merge),
        functools.partial(_apply, parts, _merge_tagged),
    )


def _apply(
    parts: Any,
    merge: Callable[..., nnx.Module],
    params: Any,
    *args: Any,
    state: Any = None,
    rngs: jax.Array | None = None,
    mutable: bool = False,
    method: str = '__call__',
    **kwargs: Any,
) -> Any:
    graphdef, shapes, own = parts
    # Variables may only change at the trace level they were made at: copy them at this one.
    variables, others = jax.tree.map(lambda leaf: leaf, (shapes, own if state is None else state))
    nnx.replace_by_pure_dict(variables, params)
    twin = merge(graphdef, variables, others)
    if rngs is not None:
        nnx.reseed(twin, default=rngs)
    output = getattr(twin, method)(*args, **kwargs)
    if not mutable:
        return output
    return output, nnx.split(twin, nnx.Param, ...)[2]


def _merge_tagged(graphdef: Any, params: Any, state: Any) -> nnx.Module:
    """A fresh twin whose submodules are of subclasses that mark their calls.

    Python looks `__call__` up on the class, so the class changes; the twin is ours alone and the
    user's module keeps its own.
    """
    twin = nnx.merge(graphdef, params, state)
    for path, node in list(nnx.iter_graph(twin)):
        if isinstance(node, nnx.Module) and path and callable(node):
            node.__class__ = _tagging_class(type(node))
            setattr(node, _PATH, '/'.join(map(str, path)))
    return twin


@functools.cache
def _tagging_class(cls: type) -> type:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        path = getattr(self, _PATH)
        args, kwargs = tags.mark_inputs((args, kwargs), cls.__name__, path)
        return tags.mark_output(cls.__call__(self, *args, **kwargs), cls.__name__, path)

    return type(cls)(cls.__name__, (cls,), {'__call__': __call__, '__module__': cls.__module__})
