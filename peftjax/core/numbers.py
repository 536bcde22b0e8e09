"""Numbers given to a method: plain numbers are checked, traced numbers are data."""

from typing import Any, TypeGuard

import numpy as np


def is_plain(value: Any) -> TypeGuard[float]:
    """Whether `value` is a Python or NumPy number, so that its value is known now.

    An array may be traced: several runs in one program have their numbers as arguments.

    >>> is_plain(0.5), is_plain(jnp.float32(0.5))
    (True, False)
    """
    return isinstance(value, int | float | np.number)
