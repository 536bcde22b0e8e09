"""The draws of torch's CPU generator from a seed, for arrays that files do not contain.

It is MT19937, seeded by one word. Held to arrays that torch drew by `tests/test_peft_files.py`.
"""

import math

import numpy as np
from jaxtyping import Float32, Int64


def _stream(seed: int) -> np.random.MT19937:
    bits = np.random.MT19937()
    bits._legacy_seeding(seed)  # pyright: ignore[reportAttributeAccessIssue] (in no stub)
    return bits


def permutation(seed: int, size: int, count: int) -> Int64[np.ndarray, ' {count}']:
    """The first `count` of `torch.randperm(size)`: int64 [count].

    Example:
        >>> sorted(permutation(0, 5, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    raw = _stream(seed).random_raw(min(count, size - 1))
    values = np.arange(size)
    for place, draw in enumerate(raw):
        other = place + int(draw) % (size - place)
        values[place], values[other] = values[other], values[place]
    return values[:count]


def uniform(
    stream: np.random.MT19937, shape: tuple[int, ...], bound: float
) -> Float32[np.ndarray, '...']:
    """`torch.empty(shape).uniform_(-bound, bound)`: float32."""
    raw = stream.random_raw(math.prod(shape)).astype(np.int64)
    unit = ((raw & 0xFFFFFF) * 2.0**-24).astype(np.float32)
    low, high = np.float32(-bound), np.float32(bound)
    # Multiplied and added with one rounding, as the processor does there.
    wide = unit.astype(np.float64) * np.float64(high - low) + np.float64(low)
    return wide.astype(np.float32).reshape(shape)


def kaiming_pair(
    seed: int, rank: int, inputs: int, outputs: int
) -> tuple[Float32[np.ndarray, '{rank} {inputs}'], Float32[np.ndarray, '{outputs} {rank}']]:
    """VeRA's `A: [rank, inputs]` and `B: [outputs, rank]`, Kaiming uniform of one generator.

    Example:
        >>> [each.shape for each in kaiming_pair(0, 2, 3, 4)]
        [(2, 3), (4, 2)]
    """
    stream = _stream(seed)
    a = uniform(stream, (rank, inputs), math.sqrt(6.0 / inputs))
    return a, uniform(stream, (outputs, rank), math.sqrt(6.0 / rank))
