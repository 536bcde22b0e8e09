"""Counts what one training step costs, for every method and route.

    python -m benchmarks.step_cost                      # both models, looped and scanned
    python -m benchmarks.step_cost --model bert --write # writes the table into benchmarks/README.md
    python -m benchmarks.step_cost --compile_times      # wall time of compiling

Parameters are abstract: only the compiler runs, and the counts do not depend on load.
`benchmarks.counting` explains how loops are counted in full.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from absl import app, flags

import peftjax
from benchmarks import options, report
from benchmarks.cases import Workload, program, workload
from benchmarks.counting import Cost, compile_seconds, cost

_LAYERS = flags.DEFINE_integer('layers', None, "instead of the checkpoint's number", lower_bound=1)
_LOOPED = flags.DEFINE_bool('looped', True, 'compile the looped models too: a minute each')
_COMPILE = flags.DEFINE_bool('compile_times', False, 'time the compiler instead of counting')

_HEADER: tuple[str, ...] = (
    *('method', 'route', 'layers', 'trainable', 'GFLOP', 'of full', 'of looped'),
    *('GB accessed', 'temporary MiB', 'arguments MiB', 'other outputs MiB'),
)
_FULL, _LORA = 'full', 'LoRA r=8, all-linear'


class Row(NamedTuple):
    """One line of the table."""

    method: str
    route: str
    layers: str
    trainable: int
    cost: Cost


def measure(work: Workload, layers: int, scan: bool) -> Iterator[Row]:
    """A row for every method and each of its routes."""
    for name, method in work.methods.items():
        trainable = peftjax.summary(method.transform, work.model).trainable
        for route in ('rules', 'merged') if method.two_routes else ('rules',):
            counted = cost(program(work, method.transform, route), layers)
            yield Row(name, route, 'scanned' if scan else 'looped', trainable, counted)


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table, header first. 'of full' compares with full fine-tuning of the same layers."""
    known = {(row.method, row.route, row.layers): row.cost for row in rows}
    lines: list[tuple[str, ...]] = [_HEADER]
    for row in rows:
        looped = known.get((row.method, row.route, 'looped')) if row.layers == 'scanned' else None
        full = known[_FULL, 'rules', row.layers]
        lines.append(
            (
                *(row.method, row.route, row.layers, f'{row.trainable:,}'),
                f'{row.cost.flops / 1e9:.4g}',
                f'{row.cost.flops / full.flops:.3f}',
                '' if looped is None else f'{row.cost.flops / looped.flops:.4f}',
                f'{row.cost.accessed / 1e9:.4g}',
                *(f'{size / 2**20:.1f}' for size in row.cost[2:5]),
            )
        )
    return lines


def count(family: str) -> tuple[str, list[Row]]:
    """The title and the rows of one model; prints each row as it is made."""
    title, rows = '', []
    for scan in (True, False) if _LOOPED.value else (True,):
        work = workload(family, options.SIZE.value, scan=scan, layers=_LAYERS.value)
        title = work.title
        for row in measure(work, work.layers, scan):
            rows.append(row)
            print(*cells(rows)[-1], sep=' | ', flush=True)
    return title, rows


def time_compiler(family: str) -> tuple[str, list[tuple[str, ...]]]:
    """Wall seconds of compiling scanned and looped steps, in alternation."""
    lines: list[tuple[str, ...]] = [('method', 'pair', 'scanned s', 'looped s', 'scanned / looped')]
    works = [
        workload(family, options.SIZE.value, scan=scan, layers=_LAYERS.value)
        for scan in (True, False)
    ]
    # The first program that a process compiles also pays for starting the compiler.
    small = workload(family, 'tiny', scan=True, layers=1)
    compile_seconds(program(small, small.methods[_LORA].transform, 'rules'))
    for name in (_FULL, _LORA):
        for pair in range(options.PAIRS.value):
            seconds = []
            for work in works:
                jax.clear_caches()
                seconds.append(
                    compile_seconds(program(work, work.methods[name].transform, 'rules'))
                )
            (trace, scanned), (trace_looped, looped) = seconds
            shown = (f'{trace:.1f} + {scanned:.1f}', f'{trace_looped:.1f} + {looped:.1f}')
            ratio = (trace + scanned) / (trace_looped + looped)
            lines.append((name, str(pair + 1), *shown, f'{ratio:.2f}'))
            print(*lines[-1], sep=' | ', flush=True)
    return works[0].title, lines


def main(argv: Sequence[str]) -> None:
    del argv
    made = report.versions('jax', 'jaxlib', 'flax', 'optax')
    for family in options.families():
        if _COMPILE.value:
            section, (title, table) = f'compile {family}', time_compiler(family)
        else:
            section, (title, rows) = f'cost {family}', count(family)
            table = cells(rows)
        print(f'\n{title}\n{report.plain(table)}\n{made}\n')
        if options.WRITE.value:
            report.write_section(section, f'**{title}**\n\n{report.markdown(table)}\n\n{made}.')


if __name__ == '__main__':
    app.run(main)
