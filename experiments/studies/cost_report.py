"""The report of the study of costs: claims, tables, figure."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.claims import Claim, Interval, Ratio, interval, within
from experiments.studies.cost import MERGED, PACKED
from experiments.studies.results import Row
from peftjax.plan import textbook
from peftjax.train.files import new_file

HU = 'Hu et al. 2021 (arXiv:2106.09685), section 3 and table 1'
DETTMERS = 'Dettmers et al. 2023 (arXiv:2305.14314)'
CAPTION = (
    'Left: memory of a training step of a Llama of 6.74 B parameters in bfloat16, one example of '
    '512 tokens, as `peftjax plan` counts it, by what it holds; diamonds are the peak that the '
    'compiler of an H100 reports. Right: seconds of the processor for a call of MiniLM with a '
    'method, over those of the plain model, on this machine; a marker is the geometric mean of the '
    'turns, a bar its 95 % interval.'
)
_PARTS = ('weights', 'adapter', 'gradients', 'optimizer', 'activations')
_GB = 1e9
_SAME = math.log(1.05)  # costs this close count as equal


def plans(rows: Sequence[Row]) -> dict[str, Row]:
    """The rows of plans, by method."""
    return {row['method']: row for row in rows if row['stage'] == 'plan'}


def total(row: Row) -> float:
    """Gigabytes of a plan."""
    return sum(row[part] for part in _PARTS) / _GB


def peaks(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Gigabytes that compilers report, by method and topology; infinite for what does not fit."""
    return {
        (row['method'], row['topology']): row['peak'] / _GB
        for row in rows
        if row['stage'] == 'compiled'
    }


def costs(rows: Sequence[Row]) -> dict[str, dict[tuple[int, int], Interval]]:
    """The logarithm of the ratio of costs, method to plain model, by method and shape."""
    found: dict[str, dict[tuple[int, int], list[float]]] = {}
    for row in rows:
        if row['stage'] == 'latency':
            for method, ratio in row['ratios'].items():
                shapes = found.setdefault(method, {})
                shapes.setdefault((row['batch'], row['length']), []).append(math.log(ratio))
    return {
        method: {shape: interval(each) for shape, each in shapes.items()}
        for method, shapes in found.items()
    }


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims about memory and latency that this study can test."""
    made = [_arithmetic(), *_memory(rows)]
    found = costs(rows)
    smallest = min(found['lora all'], key=lambda shape: shape[0] * shape[1])
    at = f'{smallest[0]} x {smallest[1]} tokens'
    for method in ('lora', 'lora all'):
        every = interval([each.mean for each in found[method + MERGED].values()])
        made.append(
            Claim(
                f'{_NAMES[method]}, merged, add no latency.',
                HU,
                f'seconds of the processor over those of the plain model, over {every.seeds} '
                f'shapes: {Ratio(every).show()}',
                *within(every, _SAME, 'Equal means within 5 %.'),
            )
        )
    for method in ('bottlenecks', 'lora all'):
        cost = Ratio(found[method][smallest])
        made.append(
            Claim(
                f'{_NAMES[method]} add latency where they are not merged, in small batches.',
                HU,
                f'seconds of the processor over those of the plain model at {at}, over turns: '
                f'{cost.show()}',
                *cost.above(1.0),
            )
        )
    return made


_NAMES = {
    'bottlenecks': 'Bottleneck adapters',
    'lora': 'LoRA matrices at query and value',
    'lora all': 'LoRA matrices everywhere',
}


def _arithmetic() -> Claim:
    counted = textbook(7e9, 'bfloat16')
    weights, whole = counted['weights'] / _GB, counted['total'] / _GB
    right = (round(weights), round(whole)) == (14, 56)
    return Claim(
        '7 B parameters in 16 bits are 14 GB of weights, and 56 GB with gradients and Adam.',
        'the arithmetic of introductions',
        f'`peftjax plan 7B --dtype bfloat16`: {weights:.0f} GB and {whole:.0f} GB',
        'confirmed' if right else 'contradicted',
        'Counted, without an interval; activations, and weights in 32 bits for the optimiser, are '
        'left out.',
    )


def _memory(rows: Sequence[Row]) -> list[Claim]:
    counted = plans(rows)
    full, lora, packed = (total(counted[name]) for name in ('full', 'lora', 'lora' + PACKED))
    return [
        Claim(
            'LoRA takes a third of the memory of full fine-tuning, or less.',
            HU,
            f'one step of 7 B, counted: {lora:.1f} GB against {full:.1f} GB with trained weights '
            f'in 32 bits, {lora / full:.2f} of it',
            'confirmed' if 3 * lora <= full else 'contradicted',
            'Counted, without an interval.',
        ),
        Claim(
            'Four bits take the memory of a step with LoRA to less than a third.',
            DETTMERS,
            f'LoRA on NF4, counted: {packed:.1f} GB against {lora:.1f} GB, {packed / lora:.2f} '
            f'of it',
            'confirmed' if 3 * packed <= lora else 'contradicted',
            'Counted, without an interval, of the whole step.',
        ),
    ]


def text(rows: Sequence[Row]) -> str:
    """The tables of memory and latency in Markdown."""
    found, said = plans(rows), peaks(rows)
    topologies = list(dict.fromkeys(topology for _, topology in said))
    head = ['method', 'trained', *(f'{part}, GB' for part in _PARTS), 'sum, GB']
    head += [f'peak a device by the compiler of {each}, GB' for each in topologies]
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for method, row in found.items():
        cells = [method, f'{row["trainable"]:,}', *(f'{row[part] / _GB:.2f}' for part in _PARTS)]
        cells.append(f'{total(row):.1f}')
        for topology in topologies:
            peak = said.get((method, topology))
            cells.append(
                '' if peak is None else f'{peak:.1f}' if math.isfinite(peak) else 'too much'
            )
        lines.append('| ' + ' | '.join(cells) + ' |')
    lines += ['', _devices(rows), '']
    latencies = costs(rows)
    shapes = list(next(iter(latencies.values())))
    lines += [
        '| method | ' + ' | '.join(f'{batch} x {length}' for batch, length in shapes) + ' |',
        '|' + '---|' * (len(shapes) + 1),
    ]
    for method, by_shape in latencies.items():
        cells = [Ratio(by_shape[shape]).show() for shape in shapes]
        lines.append(f'| {method} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _devices(rows: Sequence[Row]) -> str:
    devices = {row['topology']: row['devices'] for row in rows if row['stage'] == 'compiled'}
    parts = [f'{name}: weights split over {count}' for name, count in devices.items()]
    return (
        "Trained weights, their gradients and Adam's state are in 32 bits, the frozen ones in "
        'bfloat16. Of compilers, one example a device; ' + '; '.join(parts) + '.'
        if parts
        else 'Trained weights are in 32 bits, the frozen ones in bfloat16.'
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws memory and latency into a PNG."""
    figure = Figure(figsize=(13, 5), layout='constrained')
    left, right = figure.subplots(1, 2)
    _draw_memory(left, rows)
    for number, (method, by_shape) in enumerate(costs(rows).items()):
        shapes = sorted(by_shape, key=lambda shape: shape[0] * shape[1])
        places = [at + 0.06 * (number - 3) for at in range(len(shapes))]
        means = [math.exp(by_shape[shape].mean) for shape in shapes]
        low = [m - math.exp(by_shape[s].low) for m, s in zip(means, shapes, strict=True)]
        high = [math.exp(by_shape[s].high) - m for m, s in zip(means, shapes, strict=True)]
        right.errorbar(places, means, [low, high], fmt='o', ms=4, capsize=2, label=method)
        right.set_xticks(range(len(shapes)), [f'{a} x {b}' for a, b in shapes])
    right.axhline(1.0, color='black', lw=0.8, ls='--')
    right.set(xlabel='batch x tokens', ylabel='cost of a call over the plain model')
    right.grid(alpha=0.3)
    right.legend(fontsize=7, ncols=2, loc='upper right')
    with new_file(path) as new:
        figure.savefig(new, dpi=110)


def _draw_memory(axes: Axes, rows: Sequence[Row]) -> None:
    found = plans(rows)
    names = list(found)[::-1]
    start = [0.0] * len(names)
    for part in _PARTS:
        sizes = [found[name][part] / _GB for name in names]
        axes.barh(names, sizes, left=start, label=part)
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    compiled = {m: peak for (m, topology), peak in peaks(rows).items() if topology == 'H100:1'}
    shown = {m: peak for m, peak in compiled.items() if m in found and math.isfinite(peak)}
    if shown:
        axes.plot(list(shown.values()), list(shown), 'kD', ms=5, label='peak, compiler of an H100')
    axes.set(xlabel='GB')
    axes.grid(alpha=0.3, axis='x')
    axes.legend(fontsize=8)
