"""What the compiler of a device, which need not be here, says of a step."""

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
    """What the compiler says: bytes a device, and the kernels of the program.

    Attributes:
        arguments: bytes of the arguments.
        temporary: bytes of scratch at its peak; `inf` if compilation runs out of device memory.
        peak: bytes of both; `inf` likewise.
        kernels: see `kernels`.
        largest: the largest batch whose peak fits a machine; None where no machine is given.
    """

    arguments: int
    temporary: float
    peak: float
    kernels: Mapping[str, int]
    largest: int | None = None


# Kernels from libraries, and those that Triton writes. Pallas' kernels for a TPU have own names.
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

    The body of a loop counts once, so that a kernel of scanned layers does. `__cudnn$fmhaSoftmax`
    is cuDNN's fused attention, `__cudnn$fmhaSoftmaxBackward` its gradient; a Pallas kernel of a TPU
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
    """About the largest number whose peak fits; 0 only if the peak of one example does not.

    The answer is a number that was asked for, or one on the line between the peaks of the largest
    that fits and the smallest that does not. Were peaks convex in the number of examples, the line
    would never be below them. They nearly are: each is the greatest of sums that grow with it. But
    a compiler may choose another program for a number in between. No line leads to an infinite
    peak: the search then goes to the geometric middle.

    Args:
        peak: bytes by the number of examples, infinite where the compiler gives up. It is dear to
            compute, and called six times at most.
        memory: bytes that there are.
        at, found: a number and its peak.
        fixed: bytes that do not grow with it, for the first guess.

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
    """The largest number that fits, 0 for none, and the smallest above it that does not."""
    low = max((n for n in known if n and known[n] <= memory), default=0)
    return low, min((n for n in known if n > low), default=None)


def _next(known: Mapping[int, float], memory: float, last: bool) -> int | None:
    """The number whose peak to ask for; None where no other would change the answer."""
    low, high = _around(known, memory)
    if high is None:
        first, second = sorted(known)[-2:]
        # A line that is nearly flat says little.
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
        raise ValueError('this compiler does not say what memory a program takes')
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    # The CPU's compiler leaves scratch out of its peak.
    known = 0 if device.platform == 'cpu' else getattr(memory, 'peak_memory_in_bytes', 0)
    text = program.as_text() or ''
    return Compiled(arguments, temporary, known or arguments + temporary, kernels(text))


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    with warnings.catch_warnings():
        # JAX writes a program for devices that are elsewhere into its cache, and cannot read it.
        warnings.filterwarnings('ignore', 'Error reading persistent compilation cache')
        return lowered.compile()
