"""Interpreter state: the enclosing scans and the visitor that handles uses and modules."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

from peftjax.binding import tags
from peftjax.binding.uses import Contraction
from peftjax.binding.views import Leaf, Packed, View


class Called(NamedTuple):
    """A call of a module.

    Attributes:
      tag: the mark at its output.
      inputs: the array arguments.
      around: the array arguments of the module that calls it.
      output: the first array that it returned.
    """

    tag: tags.Tag
    inputs: tuple[jax.Array, ...]
    around: tuple[jax.Array, ...]
    output: jax.Array


class Visitor(Protocol):
    """Handles each use of a weight, each refusal and each call of a module."""

    def use(self, leaf: Leaf, contraction: Contraction, plain: Any) -> Any:
        """The result of a use; `plain()` is what the model computes."""
        ...

    def refuse(self, leaf: Leaf, operation: str, reason: str, spread: bool = False) -> None:
        """A leaf enters an operation that cannot be followed; `spread` if the operation broadcasts
        it."""
        ...

    def module(self, called: Called, context: 'Context') -> jax.Array:
        """The output of a module, with its rule applied."""
        ...

    def opaque(self, tag: tags.Tag, reason: str) -> None:
        """A call of a module that cannot take a rule."""
        ...


@dataclasses.dataclass(frozen=True)
class Context:
    """The interpreter's state inside the scans that it has entered.

    Attributes:
      visitor: handles uses of weights and calls of modules.
      scans: for each scan entered, `(length, whether it runs over layers)`.
      modules: state of the module rules at this slice of their stacks, by path.
      layered: for each module rule, which of the scans around it run over layers.
    """

    visitor: Visitor
    scans: tuple[tuple[int, bool], ...] = ()
    modules: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layered: Mapping[str, tuple[bool, ...]] = dataclasses.field(default_factory=dict)


def plain(value: Any, operation: str, context: Context) -> Any:
    """`value` as an array; a view is refused."""
    if not isinstance(value, View):
        return value
    context.visitor.refuse(value.leaf, operation, f'it enters {operation}')
    return array_of(value)


def array_of(value: Any) -> Any:
    """The array of a view, dequantised if needed; any other value unchanged."""
    value = value.value if isinstance(value, View) else value
    return value.read() if isinstance(value, Packed) else value
