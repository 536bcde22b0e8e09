"""The report of the study of forgetting: claims, tables, figure."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.claims import Claim, interval, judged
from experiments.studies.questions import FULL, title
from peftjax.train.files import new_file

Row = Mapping[str, Any]
Runs = Mapping[str, Sequence[Sequence[Row]]]
"""By method: the rows of each seed, in the order of seeds, each in the order of steps."""
Measure = Callable[[Row], float]

BOUND = '0.6'
"""The cosine below which a singular vector counts as an intruder in the claims."""
BIDERMAN = 'Biderman et al. 2024 (arXiv:2405.09673)'
SHUTTLEWORTH = 'Shuttleworth et al. 2024 (arXiv:2410.21228)'
CAPTION = (
    'MiniLM learns to tell six kinds of TREC questions. Left: the test loss against the drift of '
    'its embeddings of other texts (mean of 1 - cosine to the pretrained ones) in training, which '
    'begins at the top left; means of five seeds, a marker for each measurement. The curve of a '
    'method that forgets less for what it learns lies further to the left. Middle: the drift where '
    'a run first reaches the least loss that all methods reach with its seed; dots are seeds, bars '
    '95 % intervals of the mean. Right: intruder dimensions among the ten greatest singular '
    'vectors of a matrix, at that same loss, over the cosine below which a vector counts as one.'
)


def runs(rows: Sequence[Row]) -> Runs:
    """The measured runs, methods in the order of the rows.

    Raises:
        ValueError: a method lacks a measurement that another one has.
    """
    found: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        if row['stage'] == 'point':
            found.setdefault(row['method'], {}).setdefault(row['seed'], []).append(row)
    seen = {
        tuple(sorted((row['seed'], row['step']) for run in each.values() for row in run))
        for each in found.values()
    }
    if len(seen) != 1:
        raise ValueError('the methods were measured at other steps or seeds: run to the end')
    return {
        method: [sorted(each[seed], key=lambda row: row['step']) for seed in sorted(each)]
        for method, each in found.items()
    }


def at_loss(run: Sequence[Row], loss: float, measure: Measure) -> float:
    """A measure where a run first reaches a loss, by linear interpolation of its measurements.

    Raises:
        ValueError: the run does not reach it.

    Example:
        >>> run = [{'test/loss': 2.0, 'distance': 0.0}, {'test/loss': 1.0, 'distance': 0.4}]
        >>> at_loss(run, 1.5, lambda row: row['distance'])
        0.2
    """
    before = run[0]
    for row in run:
        if row['test/loss'] <= loss:
            fall = before['test/loss'] - row['test/loss']
            part = (before['test/loss'] - loss) / fall if fall else 1.0
            return measure(before) + part * (measure(row) - measure(before))
        before = row
    raise ValueError(f'the least loss of the run is above {loss}')


def at_equal_loss(found: Runs, measure: Measure) -> dict[str, np.ndarray]:
    """A measure of each method and seed at the least loss that all methods reach with the seed."""
    losses = equal_losses(found)
    return {
        method: np.array([at_loss(*pair, measure) for pair in zip(each, losses, strict=True)])
        for method, each in found.items()
    }


def equal_losses(found: Runs) -> list[float]:
    """The least loss that all methods reach, for each seed."""
    least = [[min(row['test/loss'] for row in run) for run in each] for each in found.values()]
    return np.max(least, axis=0).tolist()


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims about LoRA and forgetting, decided by paired differences of seeds."""
    found = runs(rows)
    ranks = [method for method in found if method != FULL]
    drift = at_equal_loss(found, _distance)
    intruding = at_equal_loss(found, _intruders(BOUND))
    end = {m: np.array([run[-1]['test/accuracy'] for run in each]) for m, each in found.items()}
    last = {m: np.array([_distance(run[-1]) for run in each]) for m, each in found.items()}

    def less(values: Mapping[str, np.ndarray]) -> np.ndarray:
        return values[FULL] - np.mean([values[method] for method in ranks], axis=0)

    learned, kept = interval(less(end).tolist()), interval(less(drift).tolist())
    grown, counted = interval(slopes(last).tolist()), interval((-less(intruding)).tolist())
    return [
        Claim(
            'LoRA learns less than full fine-tuning.',
            BIDERMAN,
            f'{learned.show(1, 100)} points of accuracy more by full than by LoRA, mean of ranks',
            *judged(learned),
        ),
        Claim(
            'LoRA forgets less than full fine-tuning at equal learning.',
            BIDERMAN,
            f'{kept.show()} more drift of embeddings by full than by LoRA, mean of ranks, at equal '
            'test loss',
            *judged(kept),
        ),
        Claim(
            'Forgetting by LoRA grows with its rank.',
            BIDERMAN,
            f'{grown.show(4)} more drift at the end of training for each doubling of the rank',
            *judged(grown),
        ),
        Claim(
            'LoRA has more intruder dimensions than full fine-tuning.',
            SHUTTLEWORTH,
            f'{counted.show(2)} more of the ten greatest singular vectors of a matrix, mean of '
            f'ranks, cosine below {BOUND}, at equal test loss',
            *judged(counted),
        ),
    ]


def slopes(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The least-squares slope of a value over the binary logarithm of LoRA's rank, for each seed.

    Example:
        >>> slopes({'lora 1': np.array([0.1]), 'lora 4': np.array([0.5]), 'full': np.array([9.0])})
        array([0.2])
    """
    ranks = [method for method in values if method != FULL]
    logs = np.log2([int(method.split()[1]) for method in ranks])
    table = np.array([values[method] for method in ranks])
    return np.polyfit(logs, table, 1)[0].round(12)


def _distance(row: Row) -> float:
    return row['distance']


def _intruders(bound: str) -> Measure:
    return lambda row: row['intruders'][bound]


def text(rows: Sequence[Row]) -> str:
    """Tables of the study in Markdown."""
    found = runs(rows)
    losses = interval(equal_losses(found))
    return '\n'.join(
        [
            f'At the end of training, {next(iter(found.values()))[0][-1]["step"]} steps (95 % '
            'intervals):\n',
            _ends(found),
            'Where a run first reaches the least test loss that all methods reach with its seed, '
            f'{losses.mean:.3f} on average; drift and intruders are interpolated between '
            'measurements, and bold differences leave out 0:\n',
            _equal(found),
            'Intruder dimensions among the greatest singular vectors of a matrix, at the same '
            'loss, by the cosine below which a vector counts as one:\n',
            _bounds(found),
            _together(rows),
        ]
    )


def _ends(found: Runs) -> str:
    lines = [
        '| method | trained | rate | test loss | test accuracy | drift: 1 - cosine '
        '| rank correlation of similarities |',
        '|---|---|---|---|---|---|---|',
    ]
    for method, each in found.items():
        ends = [run[-1] for run in each]
        names = ('test/loss', 'test/accuracy', 'distance', 'correlation')
        cells = [interval([row[name] for row in ends]).show() for name in names]
        lines.append(
            f'| {title(method)} | {ends[0]["trainable"]:,} | {ends[0]["rate"]:g} '
            f'| {" | ".join(cells)} |'
        )
    return '\n'.join(lines) + '\n'


def _equal(found: Runs) -> str:
    measures = {
        'drift: 1 - cosine': _distance,
        'rank correlation of similarities': lambda row: row['correlation'],
        f'intruders, cosine below {BOUND}': _intruders(BOUND),
    }
    values = [at_equal_loss(found, measure) for measure in measures.values()]
    lines = [
        f'| method | {" | ".join(measures)} | drift minus that of full |',
        '|---' * (len(measures) + 2) + '|',
    ]
    for method in found:
        cells = [interval(each[method].tolist()).show() for each in values]
        difference = interval((values[0][method] - values[0][FULL]).tolist())
        shown = difference.show()
        if not difference.low <= 0 <= difference.high:
            shown = f'**{shown}**'
        lines.append(
            f'| {title(method)} | {" | ".join(cells)} | {"" if method == FULL else shown} |'
        )
    return '\n'.join(lines) + '\n'


def _bounds(found: Runs) -> str:
    bounds = _all_bounds(found)
    lines = [f'| method | {" | ".join(bounds)} |', '|---' * (len(bounds) + 1) + '|']
    tables = [at_equal_loss(found, _intruders(bound)) for bound in bounds]
    for method in found:
        cells = [interval(table[method].tolist()).show(2) for table in tables]
        lines.append(f'| {title(method)} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _all_bounds(found: Runs) -> list[str]:
    return list(found[FULL][0][0]['intruders'])


def _together(rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row['stage'] == 'together']
    factors = ', '.join(f'{row["factor"]:.2f} for {title(row["method"])}' for row in timed)
    return (
        f'Speed of {timed[0]["runs"]} runs in one program against one run after another, on one '
        f'core: {factors}.\n'
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws the fronts, and drift and intruder dimensions at equal loss."""
    found = runs(rows)
    figure = Figure(figsize=(15, 5), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    _draw_fronts(left, found)
    for place, values in enumerate(at_equal_loss(found, _distance).values()):
        each = interval(values.tolist())
        style = {'color': f'C{place}', 'capsize': 4}
        middle.bar(place, each.mean, yerr=each.high - each.mean, alpha=0.6, **style)
        middle.plot([place] * len(values), values, 'k.', markersize=4)
    middle.set_xticks(range(len(found)), [title(m).replace(', ', ',\n') for m in found])
    middle.set(ylabel='drift: mean of 1 - cosine', title='Forgetting at equal test loss')
    bounds = _all_bounds(found)
    counts = [at_equal_loss(found, _intruders(bound)) for bound in bounds]
    for number, method in enumerate(found):
        means = [float(count[method].mean()) for count in counts]
        numbers = [float(bound) for bound in bounds]
        right.plot(numbers, means, color=f'C{number}', marker='o', label=title(method))
    right.set(
        xlabel='cosine below which a vector is an intruder',
        ylabel='intruders among ten vectors of a matrix',
        title='Intruder dimensions at equal test loss',
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    with new_file(path) as new:
        figure.savefig(new, dpi=110)


def _draw_fronts(axes: Axes, found: Runs) -> None:
    for number, (method, each) in enumerate(found.items()):
        drift = np.mean([[_distance(row) for row in run] for run in each], axis=0)
        loss = np.mean([[row['test/loss'] for row in run] for run in each], axis=0)
        axes.plot(drift, loss, color=f'C{number}', marker='o', markersize=4, label=title(method))
    axes.set(
        xlabel='forgetting: drift, mean of 1 - cosine',
        ylabel='learning: loss on test questions',
        title='Learning and forgetting in training',
    )
    axes.legend()
