"""Flax NNX modules as pure functions, plain and with every call tagged."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from peftjax.binding import attention, jaxprs, operations, tags
from peftjax.core import paths
from peftjax.core.roles import Roles

# A static attribute of the submodules of our twins, so that transforms of NNX keep it.
_PATH = 'peftjax_path'


def split_module(
    module: nnx.Module, roles: Roles | None
) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """`(params, apply, tagged apply)` of a module, which is read once and never changed.

    `apply(params, *args, state=None, rngs=None, mutable=False, method='__call__', **kwargs)`
    rebuilds the module at each call: `state` stands in for what is not a parameter (batch
    statistics, caches, random streams), `rngs` reseeds its random streams, by one key or a dict of
    a key for each, and `mutable=True` returns `(output, new state)`. A call that draws from a
    stream needs one of the two, else every call would draw the same.
    """
    graphdef, params, state = nnx.split(module, nnx.Param, ...)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    parts = graphdef, shapes, state
    return (
        nnx.to_pure_dict(params),
        functools.partial(_apply, parts, nnx.merge),
        functools.partial(_apply, parts, functools.partial(_merge_tagged, roles or Roles())),
    )


def _apply(
    parts: Any,
    merge: Callable[..., nnx.Module],
    params: Any,
    *args: Any,
    state: Any = None,
    rngs: jax.Array | Mapping[str, jax.Array] | None = None,
    mutable: bool = False,
    method: str = '__call__',
    **kwargs: Any,
) -> Any:
    graphdef, shapes, own = parts
    # Variables may only change at the trace level they were made at: copy them at this one.
    variables, others = jax.tree.map(lambda leaf: leaf, (shapes, own if state is None else state))
    nnx.replace_by_pure_dict(variables, params)
    twin = merge(graphdef, variables, others)
    seeded = _reseed(twin, rngs)
    before = _counts(twin, seeded)
    output = getattr(twin, method)(*args, **kwargs)
    if mutable:
        return output, nnx.split(twin, nnx.Param, ...)[2]
    drew = any(a is not b for a, b in zip(before, _counts(twin, seeded), strict=True))
    if drew and _depends_on_streams(parts, merge, params, args, state, kwargs):
        raise ValueError(
            'this call draws random numbers, and would draw the same at every call: write '
            "rngs={'dropout': key} (or one key for all streams), or wrap the module after "
            'module.eval()'
        )
    return output


def _reseed(module: nnx.Module, rngs: Any) -> set[str]:
    """The names of the random streams that `rngs` reseeds.

    A module of one stream, `nnx.Rngs(0)`, takes its key by any name.

    Raises:
      ValueError: a name that no stream has.
    """
    if rngs is None:
        return set()
    streams = {stream.key.tag for stream in _streams(module)}
    if not isinstance(rngs, Mapping):
        keys: dict[str, Any] = {
            name: rngs if name == 'default' else paths.fold_in(rngs, name) for name in streams
        }
    elif streams == {'default'} and len(rngs) == 1:
        keys = {'default': next(iter(rngs.values()))}
    else:
        keys = dict(rngs)
    if unknown := sorted(set(keys) - streams):
        raise ValueError(
            f'rngs has keys for {unknown}, but the random streams of this module are '
            f'{sorted(streams)}; name these'
        )
    nnx.reseed(module, **keys)  # pyright: ignore[reportArgumentType] (names are streams alone)
    return set(keys)


def _streams(module: nnx.Module) -> list[Any]:
    return [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RngStream)]


def _counts(module: nnx.Module, without: set[str]) -> list[Any]:
    """How often each random stream was drawn from, except the streams in `without`."""
    state = nnx.state(module, nnx.RngCount)
    counts = jax.tree.leaves(state, is_leaf=lambda leaf: hasattr(leaf, 'tag'))
    return [jax.tree.leaves(count)[0] for count in counts if count.tag not in without]


def _depends_on_streams(
    parts: Any, merge: Any, params: Any, args: Any, state: Any, kwargs: Any
) -> bool:
    """Whether the output depends on the random draw. A recurrent state of zeros does not."""

    def of_key(rngs: jax.Array) -> Any:
        return _apply(parts, merge, params, *args, state=state, rngs=rngs, **kwargs)

    closed = jax.make_jaxpr(of_key)(jax.random.key(0))
    touched = jaxprs.evaluate(
        operations.Body(closed.jaxpr, (False,) * len(closed.consts)),
        [True],
        lambda eqn, inputs: [any(each is True for each in inputs)] * len(eqn.outvars),
    )
    return any(each is True for each in touched)


def _merge_tagged(roles: Roles, graphdef: Any, params: Any, state: Any) -> nnx.Module:
    """A fresh twin whose submodules are of subclasses that mark their calls.

    Python looks up `__call__` on the class, so the class of the twin changes. The user's module
    keeps its class.
    """
    twin = nnx.merge(graphdef, params, state)
    for path, node in list(nnx.iter_graph(twin)):
        if isinstance(node, nnx.Module) and path and callable(node):
            name = '/'.join(map(str, path))
            node.__class__ = _tagging_class(type(node), roles.matches('attention', name))
            setattr(node, _PATH, name)
            if isinstance(node, nnx.MultiHeadAttention):
                node.attention_fn = attention.marked(node.attention_fn, f'{name}/attention_fn')
    return twin


@functools.cache
def _tagging_class(cls: type, is_core: bool) -> type:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        path = getattr(self, _PATH)
        if is_core:
            return _marked_core(cls, self, args, kwargs, path)
        signature = attention.signature_of(cls)
        args, kwargs = tags.mark_inputs(signature, args, kwargs, cls.__name__, path)
        return tags.mark_output(cls.__call__(self, *args, **kwargs), cls.__name__, path)

    return type(cls)(cls.__name__, (cls,), {'__call__': __call__, '__module__': cls.__module__})


def _marked_core(cls: Any, module: Any, args: Any, kwargs: Any, path: str) -> Any:
    output = cls.__call__(module, *args, **kwargs)
    signature = attention.signature_of(cls)
    graphdef, state = nnx.split(module)
    if jax.tree.leaves(state):
        raise ValueError(
            f'the attention core {path!r} holds {list(nnx.to_flat_state(state))}; a core must have '
            'no parameters and no random streams'
        )
    core = _Core(cls, graphdef)
    return attention.mark(
        output, signature, core, args, kwargs, rng=None, kind=cls.__name__, path=path
    )


@dataclasses.dataclass(frozen=True)
class _Core:
    """A module without variables, as a function of its arguments."""

    cls: Any
    graphdef: Any

    def __call__(self, rng: None, *args: Any, **kwargs: Any) -> jax.Array:
        del rng  # It has no streams.
        return self.cls.__call__(nnx.merge(self.graphdef, nnx.State({})), *args, **kwargs)
