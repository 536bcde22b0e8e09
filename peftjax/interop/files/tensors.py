"""The tensors of a checkpoint, whatever the file format."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from peftjax.core.quantized import Scheme

Packed = tuple[Scheme, dict[str, np.ndarray]]


class Header(NamedTuple):
    """What a file says about a tensor before it is read; `dtype` in the file's own words."""

    shape: tuple[int, ...]
    dtype: str
    floating: bool


class Tensors(NamedTuple):
    """Headers by name, and a function that reads one tensor; nothing is read before it is called.

    packed: reads a tensor without dequantising it; None if no `Scheme` has its format.
    """

    where: str
    headers: Mapping[str, Header]
    read: Callable[[str], np.ndarray]
    packed: Callable[[str], Packed | None] = lambda name: None
