"""Weights that are NaN or infinite, found as they are read."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax.interop.errors import CheckpointError
from peftjax.interop.files.tensors import Packed, Tensors

_CHUNK = 2**22
# The bits of the exponent, all of which are set in NaN and infinity.
_EXPONENTS = {
    'float64': ('uint64', 0x7FF0 << 48),
    'float32': ('uint32', 0x7F80_0000),
    'float16': ('uint16', 0x7C00),
    'bfloat16': ('uint16', 0x7F80),
}
ADVICE = 'allow_non_finite=True (--allow-non-finite) reads it all the same'


def is_finite(values: np.ndarray) -> bool:
    """Whether no number of an array is NaN or infinite.

    Example:
        >>> is_finite(np.float32([1, 2])), is_finite(np.float16([1, np.inf]))
        (True, False)
    """
    if values.dtype.name not in _EXPONENTS:
        return not jnp.issubdtype(values.dtype, jnp.inexact) or bool(np.isfinite(values).all())
    bits, exponent = _EXPONENTS[values.dtype.name]
    flat = np.ascontiguousarray(values).reshape(-1).view(bits)
    mask = flat.dtype.type(exponent)
    return not any(
        np.any((flat[start : start + _CHUNK] & mask) == mask)
        for start in range(0, flat.size, _CHUNK)
    )


def check(where: str, name: str, values: np.ndarray) -> None:
    """Checks that an array of a file is finite.

    Raises:
        CheckpointError: it is not; the error says how many numbers are NaN and how many infinite.
    """
    if is_finite(values):
        return
    wide = values.astype(np.float64) if values.dtype.itemsize < 4 else values
    nan, infinite = int(np.isnan(wide).sum()), int(np.isinf(wide).sum())
    raise CheckpointError(
        f'{where}: {name} {list(values.shape)} is not finite: {nan:,} numbers are NaN and '
        f'{infinite:,} infinite; {ADVICE}'
    )


def check_cast(where: str, name: str, values: np.ndarray, made: np.ndarray) -> None:
    """Checks that no finite number became infinite in a narrower dtype.

    Raises:
        CheckpointError: one did.
    """
    if made.dtype != values.dtype and not is_finite(made) and is_finite(values):
        raise CheckpointError(
            f'{where}: {name} has numbers up to {float(np.max(np.abs(values))):.4g}, which '
            f'{made.dtype} does not hold; take bfloat16 or float32'
        )


def checked(tensors: Tensors, names: Iterable[str] | None = None) -> Tensors:
    """The same tensors, but reading one that is not finite raises `CheckpointError`.

    names: the tensors to check; by default all.
    """
    looked_at = set(tensors.headers if names is None else names)

    def read(name: str) -> np.ndarray:
        values = tensors.read(name)
        if name in looked_at:
            check(tensors.where, name, values)
        return values

    def packed(name: str) -> Packed | None:
        found = tensors.packed(name)
        if found is not None and name in looked_at:
            for part, values in found[1].items():
                check(tensors.where, f'{name}, {part},', values)
        return found

    return tensors._replace(read=read, packed=packed)


def check_all(where: str, arrays: dict[str, Any]) -> None:
    """Checks that arrays of a file are finite.

    Raises:
        CheckpointError: as `check`.
    """
    for name, values in arrays.items():
        check(where, name, values)
