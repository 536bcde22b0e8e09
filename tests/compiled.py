"""What a compiled program says of itself; JAX types every answer as one that may be missing."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Protocol

import jax


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


@contextlib.contextmanager
def lowered() -> Iterator[list[Any]]:
    """The programs that are made inside of the block, found in a cache on disk or not."""
    found: list[Any] = []

    def listen(event: str, duration_secs: float, **more: Any) -> None:
        if event == '/jax/core/compile/jaxpr_to_mlir_module_duration':
            found.append(more)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
