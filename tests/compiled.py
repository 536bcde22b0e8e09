"""What a compiled program says of itself; JAX types every answer as one that may be missing."""

import re
from typing import Any, Protocol


class Stage(Protocol):
    """What these read of `jax.stages.Lowered` and `jax.stages.Compiled`."""

    def as_text(self) -> str | None: ...

    def cost_analysis(self) -> Any: ...


def flops(stage: Stage) -> float:
    """Floating-point operations, the body of a loop counted once."""
    analysis = stage.cost_analysis()
    assert analysis is not None
    return analysis['flops']


def text(stage: Stage) -> str:
    """The program after optimisation."""
    found = stage.as_text()
    assert found is not None
    return found


def shapes(stage: Stage, pattern: str) -> list[tuple[int, ...]]:
    """Shapes in the text of the program; the pattern's group matches the sizes, as in '8,4'."""
    found = re.findall(pattern, text(stage))
    return [tuple(int(size) for size in sizes.split(',') if size) for sizes in found]
