"""Makes a model value of a Flax module or a plain function."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen
from flax import nnx

from peftjax.binding import calls, linen, serialization
from peftjax.binding import nnx as nnx_binding
from peftjax.binding.adapt import reads_quantized
from peftjax.binding.discover import discover
from peftjax.core.model import Model

# Here, since `import peftjax` does not bring Flax.
serialization.register()


def wrap(
    module: Any,
    params: Any,
    example_inputs: Any = None,  # Their absence is told below.
    *,
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
        Arrays may be `ShapeDtypeStruct`s; their batch size does not matter later, the path they
        take through the program does.
      config, tokenizer: kept in the model.

    Returns:
      The model. `apply` passes `rngs`, `mutable` and `method` through; `state` replaces the
      collections that are not parameters. An NNX module is read in the mode that it is in
      (`.train()` or `.eval()`) and never changed. Its `rngs` is one key, which reseeds its random
      streams (Linen's is a dict of keys); without it every call draws the same mask.

    Raises:
      TypeError: `module` is none of these, or a class of them; an NNX module comes with params, a
        Linen module with none; `example_inputs` are missing.

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
    if isinstance(module, flax.linen.Module):
        if not isinstance(params, Mapping):
            raise TypeError(
                f'the variables of a Linen module are a {type(params).__name__} and no dict; '
                'write wrap(linen_module, variables, inputs)'
            )
        params, collections = linen.split_variables(params)
        apply = linen.plain_apply(module, collections)
        traceable = linen.tagged_apply(apply)
    elif isinstance(module, nnx.Module):
        if params is not None:
            raise TypeError(
                'an NNX module holds its own params: write wrap(module, None, inputs), '
                'then model.replace(params=...) for others'
            )
        params, apply, traceable = nnx_binding.split_module(module)
    elif isinstance(module, Callable):
        apply = traceable = module
    else:
        raise TypeError(
            f'cannot wrap a {type(module).__name__}: give a flax.linen.Module, a '
            'flax.nnx.Module or a function f(params, *args)'
        )
    sites = discover(traceable, params, calls.example(example_inputs))
    takes = tuple(inspect.signature(_call_of(module)).parameters)
    return Model(reads_quantized(apply), params, sites, traceable, config, tokenizer, takes)


def _call_of(module: Any) -> Callable[..., Any]:
    return type(module).__call__ if isinstance(module, flax.linen.Module | nnx.Module) else module
