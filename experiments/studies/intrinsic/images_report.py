"""What the rows of the study on images say: claims, tables, figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.claims import Claim, Verdict, interval
from experiments.studies.intrinsic.images import scored_split
from experiments.studies.intrinsic.line import LINE, Needed, needed, ratio, within
from experiments.studies.results import Row
from peftjax.train.files import new_file

LI = 'Li et al. 2018 (arXiv:1804.08838)'
CAPTION = (
    'Accuracy over the number of dimensions that train, on Fashion-MNIST. A marker is the mean of '
    'five seeds, a bar its 95 % interval, a dashed line 90 % of the accuracy with all weights. '
    'Left: '
    'three widths of a fully connected net, and three projections. Middle: pixels in their order '
    'and shuffled, for the fully connected net and for a LeNet. Right: accuracy on 1,000 images '
    'that '
    'were trained on, with their labels and with shuffled labels.'
)
_FLAT = 1.5  # a factor within which two dimensions count as equal
_CLOSE = 0.02  # accuracies this close count as equal

Key = tuple[str, str, str]
BASE: Key = ('fc200', 'fastfood', 'true')


def curve(rows: Sequence[Row], key: Key) -> dict[int, list[float]]:
    """The accuracies of a curve by dimension, one a seed; `key` is net, projection and data."""
    score = f'{scored_split(key[2])}/accuracy'
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        if row['stage'] == 'final' and (row['net'], row['projection'], row['data']) == key:
            found.setdefault(row['dimension'], {})[row['seed']] = row[score]
    return {d: [each[seed] for seed in sorted(each)] for d, each in sorted(found.items())}


def direct(rows: Sequence[Row], key: Key) -> list[float]:
    """The accuracies with all weights of the same net and data, one a seed."""
    return curve(rows, (key[0], 'none', key[2]))[0]


def dimensions(rows: Sequence[Row], key: Key) -> Needed:
    """d90 of each seed: where its curve reaches 90 % of its accuracy with all weights."""
    return needed(curve(rows, key), direct(rows, key))


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims of Li et al. that this study can test."""
    made = [_small(rows)]
    wide = ratio(dimensions(rows, ('fc400', *BASE[1:])), dimensions(rows, ('fc100', *BASE[1:])))
    made.append(
        Claim(
            'The intrinsic dimension hardly depends on the width of the net.',
            LI,
            f'd90 at width 400 over d90 at width 100, with {_weights(rows, 400, 100):.1f} '
            f'times the weights: {wide.show()}',
            *wide.within(_FLAT),
        )
    )
    made.append(_projections(rows))
    same = ratio(dimensions(rows, ('fc200', 'fastfood', 'pixels')), dimensions(rows, BASE))
    made.append(
        Claim(
            'Shuffled pixels leave the intrinsic dimension of a fully connected net as it is.',
            LI,
            f'd90 shuffled over d90 in order: {same.show()}',
            *same.within(_FLAT),
        )
    )
    lenet = ratio(
        dimensions(rows, ('lenet', 'fastfood', 'pixels')),
        dimensions(rows, ('lenet', 'fastfood', 'true')),
    )
    made.append(
        Claim(
            'Shuffled pixels make the intrinsic dimension of a LeNet larger.',
            LI,
            f'd90 shuffled over d90 in order: {lenet.show()}; 2.7 there, on MNIST',
            *lenet.above(1.0),
        )
    )
    labels = ratio(
        dimensions(rows, ('fc200', 'fastfood', 'labels')),
        dimensions(rows, ('fc200', 'fastfood', 'few')),
    )
    made.append(
        Claim(
            'Labels at random need a far larger dimension than true ones: more than tenfold.',
            LI,
            f'd90 of accuracy in training on 1,000 images, shuffled over true labels: '
            f'{labels.show()}; 190,000 over 750 there, with all images of MNIST',
            *labels.above(10.0),
        )
    )
    return made


def _small(rows: Sequence[Row]) -> Claim:
    weights = _trained(rows, 'fc200')
    found = dimensions(rows, BASE)
    spared = ratio(Needed([float(weights)] * len(found.values)), found)
    return Claim(
        'A fully connected net needs less than 1 % of its weights for 90 % of its accuracy.',
        LI,
        f'd90: {found.show()} of {weights:,} weights, a factor of {spared.show()}; 525 to 575 '
        'there, on MNIST',
        *spared.above(100.0, 'weights over dimensions'),
    )


def _projections(rows: Sequence[Row]) -> Claim:
    fast = curve(rows, BASE)
    said, verdicts = [], []
    for kind in ('sparse', 'dense'):
        other = curve(rows, ('fc200', kind, 'true'))
        shared = [d for d in other if d in fast]
        apart = np.mean([np.subtract(other[d], fast[d]) for d in shared], axis=0)
        found = interval(apart.tolist())
        said.append(
            f'{kind} minus Fastfood, mean over d = {", ".join(map(str, shared))}: '
            f'{found.show(1, 100)} points'
        )
        verdicts.append(within(found, _CLOSE, '')[0])
    # All projections must be equal; one that differs contradicts.
    order: tuple[Verdict, ...] = ('contradicted', 'not decidable here', 'confirmed')
    return Claim(
        'Dense, sparse and Fastfood projections give the same accuracy.',
        LI,
        '; '.join(said),
        min(verdicts, key=order.index),
        f'Equal means within {100 * _CLOSE:g} points.',
    )


def _trained(rows: Sequence[Row], net: str) -> int:
    return next(row['trained'] for row in rows if row['net'] == net and row['projection'] == 'none')


def _weights(rows: Sequence[Row], wide: int, narrow: int) -> float:
    return _trained(rows, f'fc{wide}') / _trained(rows, f'fc{narrow}')


def keys(rows: Sequence[Row]) -> list[Key]:
    """The curves, in the order in which they were measured."""
    found = [(row['net'], row['projection'], row['data']) for row in rows]
    return [key for key in dict.fromkeys(found) if key[1] != 'none']


def text(rows: Sequence[Row]) -> str:
    """The dimensions and accuracies as tables in Markdown."""
    lines = [
        'd90 is the dimension at which a curve reaches 90 % of the accuracy of its own net with '
        'all '
        'weights, between two measured dimensions by their logarithms. "0.9" is the first measured '
        'dimension whose mean accuracy is 0.9 or more, the line of the paper.',
        '',
        '| net | projection | data | weights | accuracy of all weights | d90 (95 % interval) | '
        '0.9 |',
        '|---|---|---|---|---|---|---|',
    ]
    for key in keys(rows):
        means = {d: float(np.mean(each)) for d, each in curve(rows, key).items()}
        absolute = next((str(d) for d, each in means.items() if each >= LINE), 'none')
        lines.append(
            f'| {key[0]} | {key[1]} | {key[2]} | {_trained(rows, key[0]):,} '
            f'| {np.mean(direct(rows, key)):.3f} '
            f'| {dimensions(rows, key).show()} '
            f'| {absolute} |'
        )
    lines += [
        '',
        '| net | projection | data | rate | mean accuracy by dimension |',
        '|---|---|---|---|---|',
    ]
    for key in keys(rows):
        rate = next(
            row['rate']
            for row in rows
            if row['stage'] == 'final' and (row['net'], row['projection'], row['data']) == key
        )
        means = [f'{d}: {np.mean(each):.3f}' for d, each in curve(rows, key).items()]
        lines.append(f'| {key[0]} | {key[1]} | {key[2]} | {rate:g} | {", ".join(means)} |')
    lines += [
        '',
        'Data: `true`, Fashion-MNIST; `pixels`, the same pixels in another order; `few`, 1,000 '
        'images with their labels; `labels`, the same with shuffled labels. The last two count '
        'images that were trained on.',
        '',
        'Each run trained alone. Several in one program, against one after another: '
        + _together(rows),
    ]
    return '\n'.join(lines) + '\n'


def _together(rows: Sequence[Row]) -> str:
    parts = [
        f'{row["factor"]:.2f} times as many runs a second ({row["runs"]} of {row["net"]}, d = '
        f'{row["dimension"]})'
        for row in rows
        if row['stage'] == 'together'
    ]
    return '; '.join(parts) + '.'


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws the three panels into a PNG."""
    figure = Figure(figsize=(15, 4.8), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    panels = {
        left: [key for key in keys(rows) if key[2] == 'true' and key[0] != 'lenet'],
        middle: [
            key
            for key in keys(rows)
            if key[1] == 'fastfood'
            and key[2] in ('true', 'pixels')
            and key[0] in ('fc200', 'lenet')
        ],
        right: [key for key in keys(rows) if key[2] in ('few', 'labels')],
    }
    for axes, shown in panels.items():
        for number, key in enumerate(shown):
            _draw_curve(axes, rows, key, f'C{number}')
        axes.set_xscale('log')
        axes.set(xlabel='dimensions that train', ylabel='accuracy')
        axes.grid(alpha=0.3)
        if shown:
            axes.legend(fontsize=8)
    left.set_title('widths and projections')
    middle.set_title('shuffled pixels')
    right.set_title('shuffled labels: accuracy in training')
    with new_file(path) as new:
        figure.savefig(new, dpi=110)


def _draw_curve(axes: Axes, rows: Sequence[Row], key: Key, colour: str) -> None:
    found = {d: interval(each) for d, each in curve(rows, key).items()}
    means = np.array([each.mean for each in found.values()])
    errors = np.array([each.high - each.mean for each in found.values()])
    label = f'{key[0]}, {key[1]}' if key[2] == 'true' else f'{key[0]}, {key[2]}'
    errors = np.where(np.isfinite(errors), errors, 0.0)
    axes.errorbar(
        list(found), means, errors, marker='o', ms=4, capsize=2, color=colour, label=label
    )
    axes.axhline(LINE * float(np.mean(direct(rows, key))), color=colour, ls='--', lw=0.8)
