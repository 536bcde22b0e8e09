"""Converters by the name of the case."""

from collections.abc import Callable

from tests.oracle import hadamard_kronecker, lora
from tests.oracle.cases import Case, Converted

CONVERTERS: dict[str, Callable[[Case], Converted]] = {
    **lora.CONVERTERS,
    **hadamard_kronecker.CONVERTERS,
}
