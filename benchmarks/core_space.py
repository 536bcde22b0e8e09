"""Merges eight LoRAs with the shapes of a Llama-7B layer, in Core Space and by KnOTS.

python -m benchmarks.core_space --write

Each way runs in a separate process, so that its peak memory is measured alone. KnOTS decomposes the
concatenated changes `[D_1 .. D_T]`, which have the size of T weights. It is therefore timed on one
square matrix of smaller width, and Core Space on the same matrix in the same run.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import options, report
from peftjax import merging
from peftjax.core.layout import Layout

TASKS, RANK, LAYERS = 8, 16, 32
WIDTH, INNER = 4096, 11008
LAYER = {
    **dict.fromkeys(('q', 'k', 'v', 'o'), (WIDTH, WIDTH)),
    **dict.fromkeys(('gate', 'up'), (WIDTH, INNER)),
    'down': (INNER, WIDTH),
}
WIDTHS = (1024, 2048)
WAY = flags.DEFINE_string('way', '', 'core or knots, to measure one way in this process')
SIDE = flags.DEFINE_integer('side', 0, 'side of one square matrix; 0 for the layer')


def main(argv: Sequence[str]) -> None:
    del argv
    if WAY.value:
        print(json.dumps(measured(WAY.value, SIDE.value)))
        return
    rows: list[tuple[str, ...]] = [
        ('matrices', 'way', 'seconds', 'first call', 'peak MiB', 'above the start', 'error')
    ]
    found = {}
    for name, side in (('7 of a layer', 0), *((f'1 of {d} x {d}', d) for d in WIDTHS)):
        for way in ('core',) if not side else ('core', 'knots'):
            command = [sys.executable, '-m', 'benchmarks.core_space', f'--way={way}']
            done = subprocess.run(
                [*command, f'--side={side}'], capture_output=True, text=True, check=True
            )
            one = found[way, side] = json.loads(done.stdout.splitlines()[-1])
            rows.append(
                (
                    name,
                    'Core Space' if way == 'core' else 'KnOTS',
                    *(f'{one[key]:.2f}' for key in ('seconds', 'first')),
                    *(f'{one[key]:,.0f}' for key in ('peak', 'above')),
                    f'{one["error"]:.1e}',
                )
            )
            print(report.plain(rows[:1] + rows[-1:]), flush=True)
    layer = found['core', 0]
    ratios = ', '.join(
        f'{found["knots", d]["seconds"] / found["core", d]["seconds"]:.0f} at {d}' for d in WIDTHS
    )
    said = (
        f'{TASKS} adapters of rank {RANK}, TIES. {LAYERS} layers, one after another in the same '
        f'program: {LAYERS * layer["seconds"]:.0f} s by multiplication (not run), and as much '
        f'memory as one beside the adapters. KnOTS takes {ratios} times as long. The error is of '
        f'the average, relative to its norm. {report.versions("jax", "jaxlib")}.'
    )
    print(f'{report.plain(rows)}\n{said}')
    if options.WRITE.value:
        report.write_section('core space', f'{report.markdown(rows)}\n\n{said}')


def measured(way: str, side: int) -> dict[str, float]:
    """Seconds of the first call and of the best later one, and MiB at the peak."""
    shapes = {'w': (side, side)} if side else LAYER
    deltas = [_delta(np.random.default_rng(seed), shapes) for seed in range(TASKS)]
    start = _peak()
    wrap = {'core': merging.core_space, 'knots': knots}[way]
    merge = jax.jit(wrap(lambda given: merging.ties(given, density=0.2)))
    times = [_timed(merge, deltas) for _ in range(4 if way == 'core' else 2)]
    peak = _peak()
    average = jax.jit(wrap(merging.average))(deltas)
    return {
        'first': times[0],
        'seconds': min(times[1:]),
        'peak': peak,
        'above': peak - start,
        'error': _error(average, merging.average(deltas)),
    }


def _delta(random: np.random.Generator, shapes: dict[str, tuple[int, int]]) -> merging.Delta:
    return {
        name: merging.Factored(
            jnp.asarray(random.normal(size=(rows, RANK)) / rows**0.5, jnp.float32),
            jnp.asarray(random.normal(size=(RANK, columns)) / RANK**0.5, jnp.float32),
            Layout((rows, columns), (), (0,), (1,)),
        )
        for name, (rows, columns) in shapes.items()
    }


def knots(rule: merging.Rule) -> merging.Rule:
    """A rule on `S V_i` of `[D_1 .. D_T] = U S [V_1 .. V_T]` (Stoica et al., arXiv:2410.19735)."""

    def merged(deltas: Sequence[merging.Delta]) -> merging.Delta:
        bases, parts = {}, [{} for _ in deltas]
        for name in deltas[0]:
            whole = jnp.concatenate([delta[name].matrix() for delta in deltas], -1)
            left, values, right = jnp.linalg.svd(whole, full_matrices=False)
            kept = TASKS * RANK  # The other singular values are zero.
            bases[name] = left[:, :kept]
            scaled = values[:kept, None] * right[:kept]
            for part, piece in zip(parts, jnp.split(scaled, len(deltas), -1), strict=True):
                layout = Layout(piece.shape, (), (0,), (1,))
                part[name] = merging.Full(piece, layout)
        result = rule(parts)
        return {
            name: merging.Factored(bases[name], each.matrix(), deltas[0][name].layout)
            for name, each in result.items()
        }

    return merged


def _timed(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def _peak() -> float:
    """The peak memory of this process in MiB, as the kernel counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _error(found: merging.Delta, expected: merging.Delta) -> float:
    """The norm of the error of the first matrix, relative to its norm."""
    name = next(iter(found))
    right = expected[name].matrix()
    return float(jnp.linalg.norm(found[name].matrix() - right) / jnp.linalg.norm(right))


if __name__ == '__main__':
    app.run(main)
