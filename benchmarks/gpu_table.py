"""The rows of the GPU benchmark as tables, one for each kind of row."""

from collections.abc import Sequence
from typing import Any

from benchmarks import report

Row = dict[str, Any]


def page(rows: Sequence[Row]) -> str:
    """All tables in Markdown, followed by the rows without numbers."""
    parts = []
    for kind, cells in (
        ('train', _train),
        ('sweep', _sweep),
        ('decode', _decode),
        ('attention', _attention),
    ):
        found = [row for row in rows if row['kind'] == kind and _measured(row)]
        if found:
            parts.append(report.markdown(cells(found)))
    missing = [row for row in rows if not _measured(row)]
    if missing:
        parts.append('\n'.join(f'- {line(row)}' for row in missing))
    return '\n\n'.join(parts)


def line(row: Row) -> str:
    """A row as one line for the terminal."""
    result = row['result']
    what = ', '.join(
        str(row[name]) for name in ('kind', 'side', 'method', 'runs', 'remat') if row.get(name)
    )
    if 'skipped' in result:
        return f'{what}: skipped, {result["skipped"]}'
    if 'error' in result:
        return f'{what}: failed, {result["error"].splitlines()[-1]}'
    numbers = [
        f'{name} {result[name]:,.1f}' for name in ('ms', 'tokens_per_second') if name in result
    ]
    return f'{what}: {", ".join(numbers) or "measured"} ({row["seconds"]:.0f} s)'


def _measured(row: Row) -> bool:
    return not {'error', 'skipped'} & set(row['result'])


def _train(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    table: list[tuple[str, ...]] = [
        ('training step', 'by', 'ms', 'tokens/s', 'model TFLOP/s', 'MFU', 'peak GiB')
        + ('plan GiB, compiled', 'plan GiB, counted', 'of torch')
    ]
    for row in rows:
        result = row['result']
        title = f'{row["method"]}, {row["shape"]}, {row["rows"]} x {row["length"]}'
        title += f', remat {row["remat"]}' if row['remat'] else ''
        table.append(
            (
                *(title, row['side'], f'{result["ms"]:.1f}'),
                f'{result["tokens_per_second"]:,.0f}',
                *(f'{result["model_tflops"]:.1f}', _share(result.get('mfu'))),
                *(_gib(result.get(f'{name}_bytes')) for name in ('peak', 'compiled', 'counted')),
                _of_torch(row, rows),
            )
        )
    return table


def _of_torch(row: Row, rows: Sequence[Row]) -> str:
    """The ratio of our tokens per second to torch's, for the same step."""
    same = ('method', 'shape', 'rows', 'length', 'remat')
    theirs = [
        each['result']['tokens_per_second']
        for each in rows
        if each['side'] == 'torch' and all(each[name] == row[name] for name in same)
    ]
    if row['side'] == 'torch' or not theirs:
        return ''
    return f'{row["result"]["tokens_per_second"] / theirs[0]:.2f}'


def _sweep(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    alone = [row['result']['tokens_per_second'] for row in rows if row['runs'] == 1]
    table: list[tuple[str, ...]] = [
        ('runs in one program', 'ms', 'tokens/s of all', 'of one run', 'MFU', 'peak GiB')
    ]
    for row in sorted(rows, key=lambda row: row['runs']):
        result = row['result']
        rate = result['tokens_per_second']
        table.append(
            (
                f'{row["runs"]}, {row["shape"]}, {row["rows"]} x {row["length"]} each',
                *(f'{result["ms"]:.1f}', f'{rate:,.0f}'),
                f'{rate / alone[0]:.2f}' if alone else '',
                *(_share(result.get('mfu')), _gib(result['peak_bytes'])),
            )
        )
    return table


def _decode(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    table: list[tuple[str, ...]] = [
        ('decoding', 'ms', 'ms a token of each row', 'tokens/s', 'peak GiB')
    ]
    for row in rows:
        result = row['result']
        adapters = {0: 'the base', 1: '1 adapter'}.get(
            row['adapters'], f'{row["adapters"]} adapters'
        )
        title = (
            f'{row["side"]}, {adapters}, {row["rows"]} rows, {row["shape"]}, '
            f'{row["length"]} + {row["new"]} tokens'
        )
        table.append(
            (
                *(title, f'{result["ms"]:.1f}', f'{result["ms_per_token"]:.2f}'),
                *(f'{result["tokens_per_second"]:,.0f}', _gib(result['peak_bytes'])),
            )
        )
    return table


def _attention(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    names = ('out', 'dq', 'dk', 'dv')
    table: list[tuple[str, ...]] = [
        (
            'causal attention and its gradients',
            'ms',
            'scratch GiB',
            *(f'error of {n}' for n in names),
        )
    ]
    for row in rows:
        result = row['result']
        for way in ('chosen', 'plain'):
            kernels = ', '.join(result[f'{way}_kernels']) or 'none by name'
            table.append(
                (
                    f'{row["rows"]} x {row["length"]}, {way} ({kernels})',
                    f'{result[f"{way}_ms"]:.3f}',
                    _gib(result[f'{way}_scratch_bytes']),
                    *(f'{result[f"{way}_errors"][name]:.1e}' for name in names),
                )
            )
    return table


def _share(value: float | None) -> str:
    return '' if value is None else f'{value:.3f}'


def _gib(value: float | None) -> str:
    return '' if value is None else f'{value / 2**30:.2f}'
