"""Linen modules as type checkers do not see them."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn


def applied(module: nn.Module, variables: Any, *args: Any, **inputs: Any) -> Any:
    """`module.apply`, which types every result as an output or a pair of it and new variables."""
    return module.apply(variables, *args, **inputs)


def once(function: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    """`functools.cache`. Modules are hashable, but a dataclass that says so is not typed so."""
    return functools.cache(function)
