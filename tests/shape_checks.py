"""The check of array shapes that all tests run under.

jaxtyping checks the arguments and the result of every function of the packages below against the
shapes in its signature, by beartype. beartype takes a `TypedDict` for any mapping; here its entries
are looked at as well, so that the leaves of a method are checked against the matrix they belong to.
What carries no shape is not checked: the library has its own messages for wrong arguments.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jaxtyping
from beartype import beartype
from beartype.door import is_bearable
from beartype.vale import Is
from jaxtyping import AbstractArray, install_import_hook

PACKAGES = [
    f'peftjax.{name}'
    for name in 'core generation merging methods models quantize serving train'.split()
]

_checks: dict[Any, Callable[..., Any]] = {}


def install() -> None:
    """Checks what is imported from now on."""
    library: Any = jaxtyping
    library.jaxtyped = _where_shapes_are(jaxtyping.jaxtyped)
    install_import_hook(PACKAGES, 'tests.shape_checks.checked')


def _where_shapes_are(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyped` that leaves functions alone whose signature has no shapes.

    They are most functions. jaxtyping would look up the arguments of their calls as well, which
    took 6 % of the time of the tests.
    """

    def check(*, typechecker: Any) -> Callable[[Any], Any]:
        check_shapes = jaxtyped(typechecker=typechecker)
        return lambda each: check_shapes(each) if _has_shapes(each) else each

    return check


def _has_shapes(each: Any) -> bool:
    """Whether the signature of a function has shapes.

    True for anything else, such as a class or a property: jaxtyping looks at their functions
    itself. True for annotations in quotes too, which it reads.
    """
    if not inspect.isfunction(each):
        return True
    hints = each.__annotations__.values()
    return any(isinstance(hint, str) or _shaped(hint) is not Any for hint in hints)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, an empty one, whose arguments are checked.

    jaxtyping makes it for its annotations alone, again for every closure that a method makes. To
    generate code for each would take longer than the tests that call it, so equal ones share one.
    """
    hints = {name: _shaped(hint) for name, hint in function.__annotations__.items()}
    code = function.__code__
    optional = len(function.__defaults__ or ()), tuple(function.__kwdefaults__ or ())
    arguments = code.co_varnames, code.co_argcount, code.co_kwonlyargcount, code.co_flags, optional
    key = (function.__qualname__, arguments, tuple(hints.items()))
    if key not in _checks:
        function.__annotations__ = hints
        _checks[key] = beartype(function)
    return _checks[key]


def _shaped(hint: Any) -> Any:
    """A type that carries shapes, a `TypedDict` as a mapping with those entries; else `Any`."""
    if typing.is_typeddict(hint):
        return _entries(hint)
    return hint if _carries_shapes(hint) else Any


def _carries_shapes(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_carries_shapes(each) for each in typing.get_args(hint))


@functools.cache
def _entries(hint: Any) -> Any:
    entries = {name: _shaped(each) for name, each in typing.get_type_hints(hint).items()}

    def fits(leaves: Mapping[str, Any]) -> bool:
        return hint.__required_keys__ <= set(leaves) and all(
            is_bearable(leaves[name], each) for name, each in entries.items() if name in leaves
        )

    return Annotated[Mapping[str, Any], Is[fits]]
