"""Reads what `encode` wrote. A file calls the functions of `constructors` and nothing else."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.patterns import matcher
from peftjax.core.quantized import QuantizedArray
from peftjax.core.transform import PeftTransform
from peftjax.interop.errors import CheckpointError
from peftjax.interop.folder import arrays as files
from peftjax.interop.folder.constructors import ACTIVATIONS, METHODS, VALUES
from peftjax.interop.folder.encode import LARGEST

_LONGEST = 20_000  # characters of a string
# Arguments that say how often a Python loop runs while a program is traced.
_LOOPS = ('factors', 'iterations', 'neumann_terms', 'num_layers', 'terms')
_MOST_LOOPS = 1000


class Decoder:
    """Reads what `encode` wrote; `take(name)` gives an array, each at most once.

    Its input is not trusted: a wrong value raises `CheckpointError` and does nothing else.
    """

    def __init__(self, take: Callable[[str], np.ndarray]):
        self._take = take
        self._kinds: dict[frozenset[str], Callable[[Mapping[str, Any]], Any]] = {
            frozenset({'tuple'}): lambda node: tuple(map(self.value, _list(node['tuple']))),
            frozenset({'dict'}): self._dict,
            frozenset({'float'}): self._float,
            frozenset({'dtype'}): lambda node: _dtype(node['dtype']),
            frozenset({'function'}): self._function,
            frozenset({'array'}): self._array,
            frozenset({'numpy'}): self._numpy,
            frozenset({'quantized'}): self._quantized,
            frozenset({'value', 'fields'}): self._dataclass,
            frozenset({'method', 'arguments'}): self._method,
        }

    def value(self, node: Any) -> Any:
        """The value that `node` stands for."""
        if isinstance(node, dict):
            kind = self._kinds.get(frozenset(node))
            if kind is None:
                raise CheckpointError(f'{sorted(node)[:8]} are the keys of no kind of value')
            return kind(node)
        if isinstance(node, list):
            return [self.value(each) for each in node]
        if isinstance(node, str):
            return _text(node)
        if isinstance(node, int) and abs(node) > LARGEST:
            raise CheckpointError(f'{str(node)[:60]} is too large a number')
        return node

    def transform(self, node: Any) -> PeftTransform:
        """The transform that `node` describes."""
        made = self.value(node)
        if not isinstance(made, PeftTransform):
            raise CheckpointError(f'a {type(made).__name__} stands where a transform should')
        return made

    def _dict(self, node: Mapping[str, Any]) -> dict[Any, Any]:
        pairs = [_list(pair, 2) for pair in _list(node['dict'])]
        found = {}
        for key, each in pairs:
            if not isinstance(key, str | int) or key in found:
                raise CheckpointError(f'{str(key)[:60]!r} is no key, or is there twice')
            found[_text(key) if isinstance(key, str) else key] = self.value(each)
        return found

    def _float(self, node: Mapping[str, Any]) -> float:
        if node['float'] not in ('inf', '-inf', 'nan'):
            raise CheckpointError(f'{str(node["float"])[:60]!r} is no number')
        return float(node['float'])

    def _function(self, node: Mapping[str, Any]) -> Any:
        name = node['function']
        if name not in ACTIVATIONS or not hasattr(jax.nn, name):
            raise CheckpointError(f'{str(name)[:60]!r} is no function that a file may name')
        return getattr(jax.nn, name)

    def _array(self, node: Mapping[str, Any]) -> jax.Array:
        name = _text(node['array'])
        return files.on_device(name, self._take(name))

    def _numpy(self, node: Mapping[str, Any]) -> Any:
        value = self._take(_text(node['numpy']))
        return value if value.ndim else value[()]

    def _quantized(self, node: Mapping[str, Any]) -> QuantizedArray:
        fields = node['quantized']
        names = ('arrays', 'scheme', 'matrix', 'dtype')
        if not isinstance(fields, dict) or set(fields) != set(names):
            raise CheckpointError(f'a quantised leaf has the fields {names}')
        return self._made(
            'QuantizedArray', _quantized_array, map(self.value, map(fields.get, names))
        )

    def _dataclass(self, node: Mapping[str, Any]) -> Any:
        kind = VALUES.get(node['value']) if isinstance(node['value'], str) else None
        if kind is None:
            raise CheckpointError(
                f'{str(node["value"])[:60]!r} is no value that a file may name; there are '
                f'{sorted(VALUES)}'
            )
        return self._made(node['value'], kind, (), self._arguments(node['fields']))

    def _method(self, node: Mapping[str, Any]) -> PeftTransform:
        name = node['method']
        make = METHODS.get(name) if isinstance(name, str) else None
        if make is None:
            raise CheckpointError(
                f'{str(name)[:60]!r} is no method of this version of peftjax that a file may name'
            )
        arguments = self._arguments(node['arguments'])
        for each in _LOOPS:
            count = arguments.get(each)
            if isinstance(count, int) and count > _MOST_LOOPS:
                raise CheckpointError(f'{each} of {name} is {count}, more than {_MOST_LOOPS}')
        if name != 'chain':
            return self._made(name, make, (), arguments)
        if set(arguments) != {'transforms'} or not isinstance(arguments['transforms'], tuple):
            raise CheckpointError('chain takes a tuple of transforms')
        return self._made(name, make, arguments['transforms'])

    def _arguments(self, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            raise CheckpointError(f'arguments are a JSON {type(node).__name__}, not an object')
        return {name: self.value(each) for name, each in node.items()}

    def _made(
        self, name: str, make: Callable[..., Any], values: Any, named: Mapping[str, Any] = {}
    ) -> Any:
        try:
            return make(*values, **named)
        except CheckpointError:
            raise
        except Exception as error:  # Any: the arguments are not trusted.
            raise CheckpointError(f'{name} cannot be made as described: {error}') from error


def _quantized_array(*fields: Any) -> QuantizedArray:
    leaf = QuantizedArray(*fields)
    read = jax.eval_shape(leaf.dequantize)
    if (read.shape, read.dtype) != (leaf.shape, leaf.dtype):
        raise ValueError(f'its arrays give {read}')
    return leaf


def _list(node: Any, length: int | None = None) -> list[Any]:
    if not isinstance(node, list) or (length is not None and len(node) != length):
        raise CheckpointError(f'a JSON {type(node).__name__} stands where a list should')
    return node


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in files.DTYPES:
        raise CheckpointError(f'{str(name)[:60]!r} is no dtype')
    return jnp.dtype(name)


def _text(text: Any) -> str:
    """Checks that a string is harmless as a regular expression: RE2 runs it, or it is not one.

    Some strings are patterns, which the methods match with the paths of the model.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise CheckpointError(f'{str(text)[:60]!r} is no string, or too long a one')
    try:
        harmless = matcher(text).linear
    except (re.error, RecursionError, OverflowError):
        harmless = True  # It is not a pattern, and using it as one raises.
    if not harmless:
        raise CheckpointError(
            f'the pattern {text[:200]!r} is none that RE2 matches (it looks ahead or behind, say), '
            'and others can take for ever; if you trust it, give restore the transform: '
            'peftjax.restore(folder, model, transform=tx)'
        )
    return text
