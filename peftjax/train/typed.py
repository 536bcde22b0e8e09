"""Reads dataclasses from mappings of plain values, and checks each value's type."""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any


class SettingsError(ValueError):
    """An unknown setting, or a value of the wrong type."""


@functools.cache
def types_of(kind: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields, by name."""
    return typing.get_type_hints(kind)


def read_as(kind: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """A dataclass from plain values; `prefix` stands before its names in errors.

    Raises:
        SettingsError: a name that is no field (the message has near names); a value of another
            type.
    """
    types_ = types_of(kind)
    unknown = next((name for name in values if name not in types_), None)
    if unknown is not None:
        known = [f'{prefix}{name}' for name in types_]
        close = difflib.get_close_matches(f'{prefix}{unknown}', known, n=5, cutoff=0)
        raise SettingsError(f'no setting {prefix + unknown!r}; near names: {close}')
    made = {name: _value(types_[name], value, prefix + name) for name, value in values.items()}
    return kind(**made)


def _value(kind: Any, value: Any, name: str) -> Any:
    """A value as a field of that type holds it; a float field makes floats of whole numbers."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise SettingsError(
                f'{name} is {value!r}; write a mapping with the fields {", ".join(types_of(kind))}'
            )
        return read_as(kind, value, f'{name}.')
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(next(each for each in inner if each is not types.NoneType), value, name)
    fits = KINDS.get(origin or kind)
    if fits is None or not fits(value):
        raise SettingsError(f'{name} does not take {value!r}; write {said(kind)}')
    if kind is str and not _encodes(value):
        raise SettingsError(f'{name} does not take {value!a}; write a text that UTF-8 can encode')
    if kind is float:
        return float(value)
    if origin is tuple:
        return tuple(_value(inner[0], each, f'{name}[{i}]') for i, each in enumerate(value))
    if origin is Mapping and inner[1] is not Any:
        return {key: _value(inner[1], each, f'{name}.{key}') for key, each in value.items()}
    return value


def _encodes(text: str) -> bool:
    """Whether UTF-8 has the text; it lacks halves of characters, as of paths that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


KINDS: Mapping[Any, Callable[[Any], bool]] = {
    str: lambda value: isinstance(value, str),
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    tuple: lambda value: isinstance(value, list | tuple),
    Mapping: lambda value: isinstance(value, dict),
}


# Annotations of arguments whose values are checked here; functions check their other arguments.
SIMPLE: Mapping[Any, type] = {
    **{each: each for each in (int, float, str, bool)},
    **{each.__name__: each for each in (int, float, str, bool)},
}


def said(kind: Any) -> str:
    """What a value of a type is called in an error.

    Example:
        >>> said(int), said(bool)
        ('a whole number', 'true or false')
    """
    names_ = {str: 'a text', bool: 'true or false', int: 'a whole number', float: 'a number'}
    origin = typing.get_origin(kind)
    if origin is tuple:
        return 'a list'
    return names_.get(kind, 'a mapping of names to values')


def plain(value: Any) -> Any:
    """The value with dicts for mappings and lists for tuples, as JSON gives it back."""
    if hasattr(value, 'to_dict'):
        return plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
