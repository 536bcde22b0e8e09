"""Converters by the name of the case."""

from collections.abc import Callable

from tests.oracle import additive, hadamard_kronecker, weight_space
from tests.oracle.cases import Case, Converted

CONVERTERS: dict[str, Callable[[Case], Converted]] = {
    **weight_space.CONVERTERS,
    **additive.CONVERTERS,
    **hadamard_kronecker.CONVERTERS,
}
