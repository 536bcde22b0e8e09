"""What a device's compiler reports about a step; the device itself need not be here."""

import contextlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from peftjax.plan.counting import device_bytes


class Compiled(NamedTuple):
    """The report of the compiler: bytes per device, and the kernels of the program.

    Attributes:
        arguments: bytes of the arguments.
        temporary: bytes of scratch at its peak; `inf` if compilation runs out of device memory.
        peak: bytes of both; `inf` likewise.
        kernels: see `kernels`.
        largest: the largest batch whose peak fits the machine; None without a machine.
    """

    arguments: int
    temporary: float
    peak: float
    kernels: Mapping[str, int]
    largest: int | None = None


# Kernels of libraries and of Triton. Pallas kernels for a TPU have their own names.
_CALLS = re.compile(r'custom_call_target="(__cu[^"]+|[^"]*(?:triton|mosaic)[^"]*)"')
_PALLAS = re.compile(
    r'%([\w-]+?)(?:\.\d+)* = [^\n]*? custom-call\([^\n]*?custom_call_target="tpu_custom_call"'
)
_FUSIONS = re.compile(r'"kind":"(__(?:triton|cudnn|cublas)[^"]*)"')
_COLLECTIVES = re.compile(
    r' (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\('
    r'[^\n]*?channel_id=(\d+)'
)


def kernels(program: str) -> dict[str, int]:
    """How many kernels and collectives an optimised program has, by XLA's names for them.

    The body of a loop counts once, and so does a kernel of scanned layers. `__cudnn$fmhaSoftmax` is
    cuDNN's fused attention, `__cudnn$fmhaSoftmaxBackward` its gradient; a Pallas kernel of a TPU
    has its own name, such as `splash_mha_fwd_residuals`. Elementwise operations that XLA fused are
    not counted.

    Args:
        program: the text of `jax.stages.Compiled`.

    Example:
        >>> kernels('%c = custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax"')
        {'__cudnn$fmhaSoftmax': 1}
    """
    found = Counter(name for each in (_CALLS, _PALLAS, _FUSIONS) for name in each.findall(program))
    # The TPU's compiler repeats a collective in each computation that waits for it.
    found.update(name for name, _ in set(_COLLECTIVES.findall(program)))
    return dict(sorted(found.items()))


def largest_that_fits(
    peak: Callable[[int], float], memory: float, *, at: int, found: float, fixed: float
) -> int:
    """About the largest number of examples whose peak fits; 0 only if one example does not fit.

    The answer is a number whose peak is known, or one on the line between the peaks of the largest
    number that fits and the smallest that does not. This line would never be below the peaks if
    they were convex in the number of examples. They nearly are, since each is the greatest of sums
    that grow with this number; but the compiler may choose another program for a number in between.
    No line leads to an infinite peak: the search then goes to the geometric mean.

    Args:
        peak: gives the bytes for a number of examples, `inf` if compilation runs out of device
            memory. It is expensive, and called at most six times.
        memory: the bytes that are available.
        at, found: a number of examples and its peak.
        fixed: bytes that do not grow with the number of examples, for the first guess.

    Example:
        >>> largest_that_fits(lambda n: 10 + 5 * n, 100, at=2, found=20, fixed=0)
        18
    """
    known = {0: fixed, at: found}
    for left in reversed(range(6)):
        guess = _next(known, memory, last=left == 0)
        if guess is None:
            break
        known[guess] = peak(guess)
    low, high = _around(known, memory)
    if low == 0 or high is None or math.isinf(known[high]):
        return low
    return _on_line(known, low, high, memory)


def _around(known: Mapping[int, float], memory: float) -> tuple[int, int | None]:
    """The largest known number that fits, or 0, and the smallest above it that does not fit."""
    low = max((n for n in known if n and known[n] <= memory), default=0)
    return low, min((n for n in known if n > low), default=None)


def _next(known: Mapping[int, float], memory: float, last: bool) -> int | None:
    """The number whose peak to compute next; None if no other would change the answer."""
    low, high = _around(known, memory)
    if high is None:
        first, second = sorted(known)[-2:]
        # The line may be nearly flat.
        return min(max(_on_line(known, first, second, memory), 2 * low), 64 * low)
    if high == low + 1 or (low and math.isfinite(known[high])):
        return None
    if low == 0 and last:
        return 1
    if math.isfinite(known[high]):
        return max(1, min(_on_line(known, 0, high, memory), high // 2))
    *_, first, second = [0, 0, *sorted(n for n in known if n and known[n] <= memory)]
    if first:
        most = _on_line(known, first, second, memory)
        if most < high:
            return most if most > low else None
    return max(low + 1, math.isqrt(max(low, 1) * high))


def _on_line(known: Mapping[int, float], first: int, second: int, memory: float) -> int:
    """Where the line through two peaks reaches the memory."""
    slope = max(known[second] - known[first], 1.0) / (second - first)
    return math.floor(first + (memory - known[first]) / slope)


def compile_step(
    step: Callable[..., Any], state: Any, frozen: Any, inputs: Any, mesh: Any
) -> Compiled:
    """Compiles `step(state, frozen, inputs)`, with the state donated, for the devices of a mesh.

    Args:
        step: see `peftjax.train.make_train_step`.
        state, frozen, inputs: trees of `ShapeDtypeStruct`, with shardings if there is a mesh.
        mesh: a `jax.sharding.Mesh` of the devices; None for the default device.
    """
    places = None if mesh is None else (jax.tree.map(lambda leaf: leaf.sharding, state), None)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=places)
    try:
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            program = _compile(jitted.lower(state, frozen, inputs))
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return Compiled(device_bytes((state, frozen, inputs)), math.inf, math.inf, {})
    memory = program.memory_analysis()
    if memory is None:
        raise ValueError('this compiler does not report memory; leave compiled=True out')
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    # The compiler for CPUs leaves scratch out of its peak.
    known = 0 if device.platform == 'cpu' else getattr(memory, 'peak_memory_in_bytes', 0)
    text = program.as_text() or ''
    return Compiled(arguments, temporary, known or arguments + temporary, kernels(text))


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    with warnings.catch_warnings():
        # JAX writes programs for devices elsewhere to its cache, but cannot read them again.
        warnings.filterwarnings('ignore', 'Error reading persistent compilation cache')
        return lowered.compile()
