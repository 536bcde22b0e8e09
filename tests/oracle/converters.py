"""Converters by the name of the case."""

from collections.abc import Callable

from tests.oracle import lora, lora_family
from tests.oracle.cases import Case, Converted

CONVERTERS: dict[str, Callable[[Case], Converted]] = {
    **lora.CONVERTERS,
    **lora_family.CONVERTERS,
}
