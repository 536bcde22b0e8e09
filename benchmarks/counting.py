"""What the compiler says one program costs, with the bodies of its scans counted in full.

XLA's cost analysis counts the body of a loop once, however often it runs. A step over a stack of L
scanned layers holds one loop forward and one backward, each of L trips, so that its count is

    count = outside + body,        while the program does        total = outside + L body

(`body` being both loops' bodies). `outside` is everything else: the embeddings, the head, and also
the optimiser's update of all L layers, which works on stacked leaves and is counted in full.
The same program is compiled a second time with each such scan unrolled u times, an argument of
`jax.lax.scan` that changes no number: its loop bodies hold u layers, its count is outside + u body,
and so

    body = (count(u) - count(1)) / (u - 1).

Nothing of a looped model goes into this; that the result agrees with the looped model's own count
is then a check of it, which the tests and the table make. u is the smallest divisor of L above one,
so that no rest of a layer is left over.
"""

import time
from typing import NamedTuple

import jax
import jax.extend.core as jex

from benchmarks.cases import Program
from peftjax.binding import jaxprs

# Optimisation of machine code comes after the passes that decide what is computed and what is kept,
# and is most of the time of compiling: counting goes without it. Times to compile are measured with
# the defaults, in `compile_seconds`.
COUNT_ONLY = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


class Cost(NamedTuple):
    """Of one training step, whole program.

    Attributes:
        flops: floating-point operations without transcendental functions.
        accessed: bytes read and written by all operations, as if nothing stayed in a cache.
        temporary: bytes of scratch memory at the peak; not affected by how loops are counted.
        arguments: bytes of state, frozen arrays and batch.
        outputs: bytes of the results that do not take the place of a donated argument.
        scans: how many loops over layers were counted in full.
    """

    flops: float
    accessed: float
    temporary: int
    arguments: int
    outputs: int
    scans: int


def cost(program: Program, layers: int) -> Cost:
    """Compiles the step, twice where it scans over `layers`, and counts."""
    arguments = (program.state, program.frozen, program.batch)
    traced = jax.jit(program.function, donate_argnums=0).trace(*arguments)
    compiled = traced.lower().compile(COUNT_ONLY)
    counts, memory = _counts(compiled), compiled.memory_analysis()
    assert memory is not None
    unroll = _smallest_divisor(layers)
    again, scans = jaxprs.unrolled(traced.jaxpr, layers, unroll)
    extra = dict.fromkeys(('flops', 'bytes accessed'), 0.0)
    if scans and layers > 1:
        state = len(jax.tree.leaves(program.state))
        flat = jax.jit(jex.jaxpr_as_fun(again), donate_argnums=tuple(range(state)))
        more = _counts(flat.lower(*again.in_avals).compile(COUNT_ONLY))
        for name in extra:
            extra[name] = (layers - 1) * (more[name] - counts[name]) / (unroll - 1)
    return Cost(
        counts['flops'] + extra['flops'],
        counts['bytes accessed'] + extra['bytes accessed'],
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        scans,
    )


def _counts(compiled: jax.stages.Compiled) -> dict[str, float]:
    found = compiled.cost_analysis()
    assert found is not None
    return found


def _smallest_divisor(number: int) -> int:
    return next((n for n in range(2, number + 1) if number % n == 0), 1)


def compile_seconds(program: Program) -> tuple[float, float]:
    """Wall seconds to trace and lower the step, and to compile it, with the compiler's defaults."""
    start = time.perf_counter()
    step = jax.jit(program.function, donate_argnums=0)
    lowered = step.lower(program.state, program.frozen, program.batch)
    middle = time.perf_counter()
    lowered.compile()
    return middle - start, time.perf_counter() - middle
