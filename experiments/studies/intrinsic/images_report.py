"""The report of the study on images: claims, tables, figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.claims import Claim, Verdict, interval, within
from experiments.studies.intrinsic.curves import Curves, Key, at_the_edge, finish
from experiments.studies.intrinsic.images import Protocol, scored_split
from experiments.studies.intrinsic.line import LINE, Needed, ratio
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

BASE: Key = ('fc200', 'fastfood', 'true')


def curves_of(rows: Sequence[Row]) -> Curves:
    """The curves by net, projection and data."""
    return Curves(
        rows,
        ('net', 'projection', 'data'),
        whole=lambda key: (key[0], 'none', key[2]),
        score=lambda key: f'{scored_split(key[2])}/accuracy',
    )


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims of Li et al. that this study can test."""
    curves = curves_of(rows)
    made = [_small(curves)]
    large, narrow = (('fc400', *BASE[1:]), ('fc100', *BASE[1:]))
    wide = ratio(curves.needed(large), curves.needed(narrow))
    grown = curves.weights(large) / curves.weights(narrow)
    made.append(
        Claim(
            'The intrinsic dimension hardly depends on the width of the net.',
            LI,
            f'd90 at width 400 over d90 at width 100, with {grown:.1f} '
            f'times the weights: {wide.show()}',
            *wide.within(_FLAT),
        )
    )
    made.append(_projections(curves))
    same = ratio(curves.needed(('fc200', 'fastfood', 'pixels')), curves.needed(BASE))
    made.append(
        Claim(
            'Shuffled pixels leave the intrinsic dimension of a fully connected net as it is.',
            LI,
            f'd90 shuffled over d90 in order: {same.show()}',
            *same.within(_FLAT),
        )
    )
    lenet = ratio(
        curves.needed(('lenet', 'fastfood', 'pixels')),
        curves.needed(('lenet', 'fastfood', 'true')),
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
        curves.needed(('fc200', 'fastfood', 'labels')),
        curves.needed(('fc200', 'fastfood', 'few')),
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


def _small(curves: Curves) -> Claim:
    weights = curves.weights(BASE)
    found = curves.needed(BASE)
    spared = ratio(Needed([float(weights)] * len(found.values)), found)
    return Claim(
        'A fully connected net needs less than 1 % of its weights for 90 % of its accuracy.',
        LI,
        f'd90: {found.show()} of {weights:,} weights, a factor of {spared.show()}; 525 to 575 '
        'there, on MNIST',
        *spared.above(100.0, 'weights over dimensions'),
    )


def _projections(curves: Curves) -> Claim:
    fast = curves.accuracies(BASE)
    said, verdicts = [], []
    for kind in ('sparse', 'dense'):
        other = curves.accuracies(('fc200', kind, 'true'))
        shared = [d for d in other if d in fast]
        apart = np.mean([np.subtract(other[d], fast[d]) for d in shared], axis=0)
        found = interval(apart.tolist())
        said.append(
            f'{kind} minus Fastfood, mean over d = {", ".join(map(str, shared))}: '
            f'{found.show(1, 100)} points'
        )
        verdicts.append(within(found, _CLOSE, '')[0])
    # The claim is that all projections are equal, so one that differs contradicts it.
    order: tuple[Verdict, ...] = ('contradicted', 'not decidable here', 'confirmed')
    return Claim(
        'Dense, sparse and Fastfood projections give the same accuracy.',
        LI,
        '; '.join(said),
        min(verdicts, key=order.index),
        f'Equal means within {100 * _CLOSE:g} points.',
    )


def text(rows: Sequence[Row]) -> str:
    """The dimensions and accuracies as tables in Markdown."""
    curves = curves_of(rows)
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
    for key in curves.keys:
        means = {d: float(np.mean(each)) for d, each in curves.accuracies(key).items()}
        absolute = next((str(d) for d, each in means.items() if each >= LINE), 'none')
        lines.append(
            f'| {key[0]} | {key[1]} | {key[2]} | {curves.weights(key):,} '
            f'| {np.mean(curves.whole(key)):.3f} '
            f'| {curves.needed(key).show()} '
            f'| {absolute} |'
        )
    lines += [
        '',
        '| net | projection | data | rate | mean accuracy by dimension |',
        '|---|---|---|---|---|',
    ]
    for key in curves.keys:
        lines.append(
            f'| {key[0]} | {key[1]} | {key[2]} | {curves.rate(key):g} | {curves.means(key)} |'
        )
    lines += [
        '',
        'Data: `true`, Fashion-MNIST; `pixels`, the same pixels in another order; `few`, 1,000 '
        'images with their labels; `labels`, the same with shuffled labels. The last two count '
        'images that were trained on.',
        '',
        at_the_edge(curves, Protocol().rates),
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
    curves = curves_of(rows)
    fastfood = [key for key in curves.keys if key[1] == 'fastfood']
    panels = {
        'widths and projections': [
            key for key in curves.keys if key[2] == 'true' and key[0] != 'lenet'
        ],
        'shuffled pixels': [
            key for key in fastfood if key[2] in ('true', 'pixels') and key[0] in ('fc200', 'lenet')
        ],
        'shuffled labels: accuracy in training': [
            key for key in curves.keys if key[2] in ('few', 'labels')
        ],
    }
    for axes, (title, shown) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for number, key in enumerate(shown):
            label = f'{key[0]}, {key[1] if key[2] == "true" else key[2]}'
            curves.draw(axes, key, label, f'C{number}')
        finish(axes, title)
    with new_file(path) as new:
        figure.savefig(new, dpi=110)
