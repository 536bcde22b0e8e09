"""Makes a model value of a Flax module or a plain function."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen
import jax
from flax import nnx

from peftjax.binding import calls, linen, serialization
from peftjax.binding import nnx as nnx_binding
from peftjax.binding.adapt import reads_quantized
from peftjax.binding.attention import without_first
from peftjax.binding.discover import discover
from peftjax.core.model import Model
from peftjax.core.roles import Roles, parameters_of

# Imported here, because `import peftjax` does not import Flax.
serialization.register()


def wrap(
    module: Any,
    params: Any,
    example_inputs: Any = None,  # Their absence is told below.
    *,
    roles: Roles | None = None,
    config: Any = None,
    tokenizer: Any = None,
) -> Model:
    """A `Model` from any Flax Linen module, NNX module or pure function, unchanged.

    The module is traced once, abstractly, with the example inputs, to find its sites: every
    parameter leaf with all its uses, and the output of every named module.

    Args:
      module: a `flax.linen.Module` (unbound), a `flax.nnx.Module`, or a function
        `f(params, *args, **kwargs)`.
      params: for Linen the variables (`{'params': ..., 'batch_stats': ...}`) or the params
        alone; None for NNX, whose module holds them; for a function its parameters. Leaves are
        arrays or `jax.ShapeDtypeStruct`.
      example_inputs: a dict of keyword arguments, a tuple of positional ones, or one array.
        Arrays may be `ShapeDtypeStruct`s. Later calls may have another batch size, but they must
        take the same path through the program.
      roles: what the arguments and modules of the model are for; by default the attribute
        `peftjax_roles` of `module`, if it has one.
      config, tokenizer: kept in the model.

    Returns:
      The model. `apply` passes `rngs`, `mutable` and `method` through; `state` replaces the
      collections that are not parameters. An NNX module is read in the mode that it is in
      (`.train()` or `.eval()`) and never changed. `rngs` reseeds its random streams, as in Linen:
      one key, or a dict with a key for each stream. A call that draws random numbers needs it.

    Raises:
      TypeError: `module` is none of these, or it is a class and not an instance; an NNX module is
        given with params, or a Linen module without; `example_inputs` are missing; `roles` name an
        argument that the model does not take.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> dense, x = nn.Dense(3), jnp.ones((2, 4))
    >>> print(peftjax.wrap(dense, dense.init(jax.random.key(0), x), x).sites.weights['kernel'].uses)
    ('dot',)
    """
    if isinstance(module, type) and issubclass(module, flax.linen.Module | nnx.Module):
        raise TypeError(
            f'module is the class {module.__name__}; write wrap({module.__name__}(...), ...) with '
            'an instance of it'
        )
    if isinstance(module, Callable) and example_inputs is None:
        raise TypeError(
            'example_inputs are missing: write wrap(linen_module, variables, inputs), '
            'wrap(nnx_module, None, inputs) or wrap(function, params, inputs)'
        )
    roles = getattr(module, 'peftjax_roles', None) if roles is None else roles
    call = calls.example(example_inputs)
    if isinstance(module, flax.linen.Module):
        if not isinstance(params, Mapping):
            raise TypeError(
                f'the variables of a Linen module are a {type(params).__name__}, not a dict; '
                'write wrap(linen_module, variables, inputs)'
            )
        params, collections = linen.split_variables(params)
        apply = linen.plain_apply(module, collections)
        traceable = linen.tagged_apply(apply, roles)
    elif isinstance(module, nnx.Module):
        if params is not None:
            raise TypeError(
                'an NNX module holds its own params: write wrap(module, None, inputs), '
                'then model.replace(params=...) for others'
            )
        params, apply, traceable = nnx_binding.split_module(module, roles)
    elif isinstance(module, Callable):
        apply = traceable = module
    else:
        raise TypeError(
            f'cannot wrap a {type(module).__name__}: give a flax.linen.Module, a '
            'flax.nnx.Module or a function f(params, *args)'
        )
    signature = without_first(inspect.signature(_call_of(module)))
    if not isinstance(roles, Roles | None):
        raise TypeError(
            f'roles is a {type(roles).__name__}; write roles=peftjax.Roles(token_ids=...)'
        )
    if roles is not None:
        roles.check(parameters_of(signature))
    sites = discover(_drawing(module, traceable), params, call)
    return Model(
        reads_quantized(apply), params, sites, traceable, config, tokenizer, roles, signature
    )


def _call_of(module: Any) -> Callable[..., Any]:
    return type(module).__call__ if isinstance(module, flax.linen.Module | nnx.Module) else module


def _drawing(module: Any, traceable: Callable[..., Any]) -> Callable[..., Any]:
    """`traceable` with keys for random numbers, which the example inputs may lack."""
    if not isinstance(module, nnx.Module):
        return traceable

    def drawing(*args: Any, **kwargs: Any) -> Any:
        return traceable(*args, **{'rngs': jax.random.key(0), **kwargs})

    return drawing
