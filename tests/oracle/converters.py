"""Converters by the name of the case."""

from collections.abc import Callable

from tests.oracle import additive, lora_family, rotations, selective, weight_space
from tests.oracle.cases import Case, Converted

CONVERTERS: dict[str, Callable[[Case], Converted]] = {
    **lora_family.CONVERTERS,
    **weight_space.CONVERTERS,
    **rotations.CONVERTERS,
    **selective.CONVERTERS,
    **additive.CONVERTERS,
}
