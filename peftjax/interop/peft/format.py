"""How a weight method in a file of peft is described: its tensors and fields beside ours."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Tensor(NamedTuple):
    """One array of ours in the file: the ending after the module's name, and both conversions."""

    ending: str
    load: Callable[[Array], Array] = np.asarray
    save: Callable[[Array], Array] = np.asarray


def _number(value: Any) -> Any:
    if isinstance(value, str) or not abs(value) < 1e30:
        raise ValueError('no number')
    return value


class Field(NamedTuple):
    """One argument of ours in the config, and both conversions."""

    theirs: str
    ours: str
    load: Callable[[Any], Any] = _number
    save: Callable[[Any], Any] = lambda value: value


class Drawn(NamedTuple):
    """Arrays that a method has besides its adapter, for all its matrices.

    argument: the name of our argument. load: `(config, {matrix: (module, in, out)}, tensors) ->
    value` of the argument, by matrix or for all; pops the tensors that it reads. save: `(arguments,
    {leaf: entry}, {leaf: modules}) -> tensors` for the file.
    """

    argument: str
    load: Callable[[Mapping[str, Any], Mapping[str, Any], dict[str, Array]], Any]
    save: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], dict[str, Array]]


class Format(NamedTuple):
    """A method that acts on each matrix separately.

    Attributes:
        method: the name of our method.
        tensors: by the name of our array; those in `optional` need not be there.
        fields: of the config.
        fixed: further fields of the config with the one value that is understood.
        drawn: arrays that are not in the adapter.
        load_more, save_more: `(config, arrays of one matrix) -> arguments` and `(arguments) ->
            fields`, for settings where one field is not one argument.
        conv1d: whether the library has the method for the linear layers of GPT-2, whose weights
            are [in, out].
        biased: the array of ours that the method applies to the module's bias too.
        lengths: the ending of tensors that repeat the lengths of the base's rows; '' if there are
            none.
        negated: tells by the config whether the arrays have the other sign in the file.
    """

    method: str
    tensors: Mapping[str, Tensor]
    fields: tuple[Field, ...]
    fixed: Mapping[str, Any] = {}
    optional: frozenset[str] = frozenset()
    drawn: Drawn | None = None
    load_more: Callable[[Mapping[str, Any], Mapping[str, Array]], dict[str, Any]] | None = None
    save_more: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    conv1d: bool = False
    biased: str = ''
    lengths: str = ''
    negated: Callable[[Mapping[str, Any]], bool] = lambda config: False
