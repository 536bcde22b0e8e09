"""Numbers that a method is given: plain ones are checked, traced ones are data."""

from typing import Any, TypeGuard

import numpy as np


def is_plain(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number of Python or NumPy, which can be looked at now.

    An array may be traced: several runs in one program have their numbers as arguments.

    >>> is_plain(0.5), is_plain(jnp.float32(0.5))
    (True, False)
    """
    return isinstance(value, int | float | np.number)
