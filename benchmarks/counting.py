"""The costs of one program by the compiler, with the bodies of its scans counted in full.

XLA's cost analysis counts the body of a loop once, however often it runs. A step over a stack of L
scanned layers has a forward and a backward loop of L trips each, so that its count is

    count = outside + body,        while the program does        total = outside + L body

(`body` is the sum of both bodies). `outside` is everything else: the embeddings, the head, and the
optimiser's update of all L layers, which works on stacked leaves and is counted in full.
The same program is compiled again with these scans unrolled u times, by an argument of
`jax.lax.scan` that does not change the result. Its loop bodies hold u layers, its count is
outside + u body, and so

    body = (count(u) - count(1)) / (u - 1).

This does not use a looped model, so the looped model's own count is a check of the result, which
the tests and the table make. u is the smallest divisor of L above one, so that no layers are left
over.
"""

import time
from typing import NamedTuple

import jax
import jax.extend.core as jex

from benchmarks.cases import Program
from peftjax.binding import jaxprs

# Counting skips the optimisation of machine code, which takes most of the compile time but comes
# after the passes that decide what is computed and kept. `compile_seconds` uses the defaults.
COUNT_ONLY = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


class Cost(NamedTuple):
    """The costs of one training step, as a whole program.

    Attributes:
        flops: floating-point operations without transcendental functions.
        accessed: bytes read and written by all operations, as if nothing stayed in a cache.
        temporary: bytes of scratch memory at the peak, which does not depend on how loops are
            counted.
        arguments: bytes of state, frozen arrays and batch.
        outputs: bytes of the results that do not reuse a donated argument.
        scans: the number of loops over layers that were counted in full.
    """

    flops: float
    accessed: float
    temporary: int
    arguments: int
    outputs: int
    scans: int


def cost(program: Program, layers: int) -> Cost:
    """Compiles the step, twice if it scans over `layers`, and counts."""
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
