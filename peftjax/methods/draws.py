"""Random arrays that do not train: drawn from a seed, outside the compiled program.

The streams of NumPy's `RandomState` are frozen (NEP 19), so these arrays need not be saved with an
adapter.
"""

import zlib

import numpy as np
from jaxtyping import Int, Int32


def stream(seed: int, name: str) -> np.random.RandomState:
    """A separate random stream for `name`.

    >>> stream(0, 'a').uniform() == stream(0, 'a').uniform() != stream(0, 'b').uniform()
    True
    """
    return np.random.RandomState([seed, zlib.crc32(name.encode())])


def distinct(
    seed: int, name: str, count: int, size: int, stack: tuple[int, ...]
) -> Int32[np.ndarray, '*stack {count}']:
    """`[*stack, count]` int32: for each layer `count` different numbers below `size`, in order."""
    random = stream(seed, name)
    layers = [np.sort(_sample(random, count, size)) for _ in range(int(np.prod(stack)))]
    return np.stack(layers).reshape(*stack, count).astype(np.int32)


def _sample(random: np.random.RandomState, count: int, size: int) -> Int[np.ndarray, ' {count}']:
    """A sample without replacement in time and memory of its count, not of the population."""
    if 2 * count > size:
        return random.permutation(size)[:count]
    drawn = np.empty(0, int)
    while len(drawn) < count:
        drawn = np.append(drawn, random.randint(size, size=2 * (count - len(drawn))))
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return drawn[:count]
