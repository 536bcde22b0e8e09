"""Selects the input of a bottleneck adapter: module output, module input, or residual sum."""

from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Float

from peftjax.core.model import Model
from peftjax.core.paths import TargetError, near_names
from peftjax.core.roles import Roles
from peftjax.core.sites import ModuleSite
from peftjax.core.use import ModuleUse

Reads = Literal['output', 'input', 'after']
Activation = str | Callable[[jax.Array], jax.Array]

_INPUTS: dict[str, int] = {'input': 0, 'after': 2}
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': jax.nn.relu,
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    'gelu_tanh': jax.nn.gelu,
    'swish': jax.nn.silu,
    'tanh': jax.nn.tanh,
}


def check_reads(reads: str) -> None:
    """Raises `ValueError` on a word that `read` does not know."""
    if reads not in ('output', *_INPUTS):
        raise ValueError(f"reads must be 'output', 'input' or 'after', got {reads!r}")


def width(site: ModuleSite, reads: str, model: Model) -> int:
    """The number of features that an adapter at `site` of `model` reads.

    Raises:
      TargetError: the module has no such input.
    """
    if reads == 'output':
        return site.features
    number = _INPUTS[reads]
    if len(site.inputs) <= number:
        roles = model.roles or Roles()
        fits = [path for path in model.sites.modules if roles.matches('residual_end', path)]
        near = near_names(site.path, fits, most=1)
        meant = f'. Did you mean {near[0]!r}?' if near else '.'
        raise TargetError(
            f'reads={reads!r} takes array argument {number} of module {site.path!r}, which is '
            f'called with {len(site.inputs)} ({site.inputs}){meant} Modules at the end of a '
            'sublayer (the role residual_end) have (residual, output, after); of a model without '
            "them write peftjax.bottleneck(reads='output')"
        )
    return site.inputs[number][-1]


def read(use: ModuleUse, reads: str) -> Float[jax.Array, '...']:
    """The array that the adapter reads in one call of the module."""
    return use.output if reads == 'output' else use.inputs[_INPUTS[reads]]


def activation_of(activation: Activation) -> Callable[[jax.Array], jax.Array]:
    """A function by its name; a function is returned unchanged.

    Raises:
      ValueError: a name that is not known.
    """
    if callable(activation):
        return activation
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f'activation {activation!r} is unknown: give a function, or one of '
            f'{", ".join(_ACTIVATIONS)}'
        )
    return _ACTIVATIONS[activation]
