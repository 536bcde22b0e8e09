"""Counts the costs of a random subspace: Fastfood against a dense projection, compiled, never run.

python -m benchmarks.fastfood --write
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app

from benchmarks import options, report
from peftjax.methods.subspace.fastfood import project

_SIZES = ((200, 10**6), (1000, 10**6), (1000, 10**7), (10000, 10**7))
_MIB = 2**20
_SEED = jnp.zeros(1, jnp.uint32)


def counts(function: Any, *arguments: tuple[int, ...]) -> tuple[float, float]:
    """FLOPs of the compiled function, and bytes of its arguments, temporaries and results."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in arguments]
    compiled = jax.jit(function).lower(*shapes).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return (compiled.cost_analysis() or {})['flops'], held


def main(argv: Sequence[str]) -> None:
    del argv
    table: list[tuple[str, ...]] = [
        ('d', 'D', 'GFLOP', 'dense GFLOP', 'ratio', 'MiB', 'dense MiB', 'ratio'),
    ]
    for dimension, size in _SIZES:
        fast = counts(lambda v, size=size: project(v, (size,), _SEED)[0], (dimension,))
        dense = counts(lambda p, v: p @ v, (size, dimension), (dimension,))
        table.append(
            (
                f'{dimension:,}',
                f'{size:,}',
                *(f'{flops / 1e9:.3g}' for flops in (fast[0], dense[0])),
                f'{fast[0] / dense[0]:.3f}',
                *(f'{held / _MIB:,.0f}' for held in (fast[1], dense[1])),
                f'{fast[1] / dense[1]:.4f}',
            )
        )
    made = f'Compiled for {jax.default_backend()}. {report.versions("jax", "jaxlib")}.'
    print(f'{report.plain(table)}\n{made}')
    if options.WRITE.value:
        report.write_section('fastfood', f'{report.markdown(table)}\n\n{made}')


if __name__ == '__main__':
    app.run(main)
