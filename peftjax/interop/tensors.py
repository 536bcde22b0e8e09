"""The tensors of a checkpoint, whatever the file format."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Header(NamedTuple):
    """What a file says about a tensor before it is read; `dtype` in the file's own words."""

    shape: tuple[int, ...]
    dtype: str
    floating: bool


class Tensors(NamedTuple):
    """Headers by name, and a function that reads one tensor; nothing is read before it is asked."""

    where: str
    headers: Mapping[str, Header]
    read: Callable[[str], np.ndarray]
