"""Numbers given to a method: plain numbers are checked, traced numbers are data."""

from typing import Any, TypeGuard

import numpy as np

_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
HELD = 'a number with an absolute value from 1.2e-38 to 3.4e+38'
"""The range of float32, for error messages."""


def is_plain(value: Any) -> TypeGuard[float]:
    """Whether `value` is a Python or NumPy number, so that its value is known now.

    An array may be traced: several runs in one program have their numbers as arguments.

    >>> is_plain(0.5), is_plain(jnp.float32(0.5))
    (True, False)
    """
    return isinstance(value, int | float | np.number)


def is_held(number: float) -> bool:
    """Whether float32 holds a plain number: not NaN, not infinite, and not rounded to 0.

    >>> is_held(0), is_held(1e-3), is_held(1e-60), is_held(1e300), is_held(float('nan'))
    (True, True, False, False, False)
    """
    return bool(number == 0 or _LEAST <= abs(number) <= _MOST)


def shown(number: float) -> str:
    """A plain number as text; Python writes out no integer of more than 4,300 digits.

    >>> shown(1e300), shown(10**5000)
    ('1e+300', 'an integer of 16610 bits')
    """
    if isinstance(number, int) and number.bit_length() > 1000:
        return f'an integer of {number.bit_length()} bits'
    return str(number)
