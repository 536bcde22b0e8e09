"""Transforms, and the values that they are made of, as JSON and arrays.

Plain numbers, strings, None and lists stand for themselves. An object stands for one value, whose
kind its keys tell: `tuple`, `dict`, `float` (not finite), `dtype`, `function`, `array` and `numpy`
(names of tensors), `value` (a dataclass), `quantized`, `method` (a transform).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.quantized import QuantizedArray
from peftjax.core.transform import PeftTransform
from peftjax.interop.folder.constructors import ACTIVATIONS, VALUES

LARGEST = 2**53
_PLAIN = (bool, int, float, complex)


def is_described(transform: PeftTransform) -> bool:
    """Whether a transform, and every one that it is made of, says how it was made."""
    if transform.about is None:
        return False
    return all(is_described(each) for each in _members(transform.about.arguments.values()))


def _members(values: Any) -> list[PeftTransform]:
    found = []
    for value in values:
        if isinstance(value, PeftTransform):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _members(value)
        elif isinstance(value, Mapping):
            found += _members(value.values())
    return found


def encode(value: Any, arrays: dict[str, Any], prefix: str, where: str = '') -> Any:
    """`value` as JSON; the arrays in it go to `arrays`, under names that begin with `prefix`.

    Raises:
        ValueError: a value that a file cannot hold (the error names it).
    """

    def inner(each: Any, name: str = '') -> Any:
        return encode(each, arrays, prefix, f'{where}.{name}'.strip('.') if name else where)

    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and abs(value) <= LARGEST:
        return int(value)
    if isinstance(value, float) and not isinstance(value, np.generic):
        return value if math.isfinite(value) else {'float': str(value)}
    if isinstance(value, QuantizedArray):
        fields = {name: getattr(value, name) for name in ('arrays', 'scheme', 'matrix', 'dtype')}
        return {'quantized': {name: inner(each, name) for name, each in fields.items()}}
    if _is_dtype(value):
        return {'dtype': _dtype_name(value)}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        name = f'{prefix}{len(arrays)}'
        arrays[name] = value
        return {'array' if isinstance(value, jax.Array) else 'numpy': name}
    if isinstance(value, list):
        return [inner(each) for each in value]
    if isinstance(value, tuple | range):
        return {'tuple': [inner(each) for each in value]}
    if isinstance(value, Mapping):
        return {'dict': [[inner(name), inner(each, str(name))] for name, each in value.items()]}
    if isinstance(value, PeftTransform) and value.about is not None:
        name, arguments = value.about.name, value.about.arguments
        told = {each: inner(given, f'{name}.{each}') for each, given in arguments.items()}
        return {'method': name, 'arguments': told}
    kind = type(value).__name__
    if VALUES.get(kind) is type(value):
        fields = {name: inner(each, name) for name, each in vars(value).items()}
        return {'value': kind, 'fields': fields}
    if callable(value):
        return {'function': _function_name(value, where)}
    raise ValueError(f'{where} is a {kind}, which a file cannot hold; {_OR_BY_HAND}')


_OR_BY_HAND = (
    'or save with tx.replace(about=None) in place of tx, and restore with '
    'peftjax.restore(folder, model, transform=tx)'
)


def _is_dtype(value: Any) -> bool:
    if not isinstance(value, type):
        return isinstance(value, np.dtype)
    plain = value in _PLAIN or issubclass(value, np.generic)
    return plain or isinstance(getattr(value, 'dtype', None), np.dtype)  # jnp.float32


def _dtype_name(value: Any) -> str:
    plain = isinstance(value, type) and value in _PLAIN
    return str(jax.dtypes.canonicalize_dtype(value) if plain else jnp.dtype(value))


def _function_name(value: Any, where: str) -> str:
    for name in ACTIVATIONS:
        if getattr(jax.nn, name, None) is value:
            return name
    told = getattr(value, '__qualname__', None) or type(value).__name__
    raise ValueError(
        f'{where} is the function {told!r}, and a file holds no code; write a function of jax.nn '
        f'such as jax.nn.gelu, {_OR_BY_HAND}'
    )


def difference(file: Any, given: Any, where: str = '') -> str | None:
    """The first difference of two descriptions, with both values; None if there is none.

    An argument that the file does not name is not compared: the version that wrote it lacked it.
    """
    if isinstance(file, dict) and isinstance(given, dict):
        same_method = 'method' in file and file['method'] == given.get('method')
        place = str(file['method']) if same_method else where
        missing = sorted(set(file) - set(given))
        if missing:
            return f'{where} has {missing[0]!r} in the folder but not in the transform'
        differ = (difference(file[name], given[name], _below(place, name)) for name in file)
        return next(filter(None, differ), None)
    if isinstance(file, list) and isinstance(given, list) and len(file) == len(given):
        differ = (difference(one, other, where) for one, other in zip(file, given, strict=True))
        return next(filter(None, differ), None)
    if file == given and isinstance(file, bool) == isinstance(given, bool):
        return None
    return f'{where} is {str(file)[:200]} in the folder and {str(given)[:200]} in the transform'


def _below(where: str, name: str) -> str:
    return (
        where if name in ('arguments', 'fields', 'dict', 'tuple') else f'{where}.{name}'.strip('.')
    )
