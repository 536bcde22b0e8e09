"""What describes a weight method in a file of peft: tensors and fields beside what is ours."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Tensor(NamedTuple):
    """One array of ours in the file: what stands behind the module's name, and the two ways."""

    ending: str
    load: Callable[[Array], Array] = np.asarray
    save: Callable[[Array], Array] = np.asarray


def _number(value: Any) -> Any:
    if isinstance(value, str) or not abs(value) < 1e30:
        raise ValueError('no number')
    return value


class Field(NamedTuple):
    """One argument of ours in the config, and the two ways."""

    theirs: str
    ours: str
    load: Callable[[Any], Any] = _number
    save: Callable[[Any], Any] = lambda value: value


class Drawn(NamedTuple):
    """What a method has besides its adapter, of all its matrices.

    argument: of ours. load: `(config, {matrix: (module, in, out)}, tensors) -> its value`, by
    matrix or for all, which pops from `tensors` what it reads. save: `(arguments, {leaf: entry},
    {leaf: modules}) -> tensors` for the file.
    """

    argument: str
    load: Callable[[Mapping[str, Any], Mapping[str, Any], dict[str, Array]], Any]
    save: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], dict[str, Array]]


class Format(NamedTuple):
    """A method on matrices, each on its own.

    Attributes:
        method: of ours.
        tensors: by the name of our array; those in `optional` need not be there.
        fields: of the config.
        fixed: further fields of the config with the one value that is understood.
        drawn: arrays that are not in the adapter.
        load_more, save_more: `(config, arrays of one matrix) -> arguments` and `(arguments) ->
            fields`, for what is not one field beside one argument.
        conv1d: whether the library has the method for the linear layers of GPT-2, whose weights
            are [in, out].
        biased: of our arrays, the one that a method applies to the module's bias as well.
        lengths: ends the names of tensors that repeat the lengths of the base's rows; '' if none
            do.
        negated: whether, by the config, the arrays have the other sign in the file.
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
