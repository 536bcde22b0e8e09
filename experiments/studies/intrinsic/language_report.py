"""What the rows of the study on language models say: claims, tables, figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.claims import Claim, interval
from experiments.studies.intrinsic.line import LINE, Needed, Ratio, needed, ratio
from experiments.studies.results import Row
from peftjax.train.files import new_file

AGHAJANYAN = 'Aghajanyan et al. 2020 (arXiv:2012.13255)'
CAPTION = (
    'Accuracy on unseen TREC questions over the number of dimensions that train. A marker is the '
    'mean of five seeds, a bar its 95 % interval, a dashed line 90 % of the accuracy with all '
    'weights of the layers. Left: MiniLM with its own weights, and with the entries of each matrix '
    'permuted. Right: a small BERT after growing numbers of steps of '
    'pretraining, with a scale for each matrix (SAID) and without (DID).'
)

Key = tuple[str, str, str]


def curve(rows: Sequence[Row], key: Key) -> dict[int, list[float]]:
    """Accuracies on test by dimension, one a seed; `key` is model, weights and kind."""
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        if row['stage'] == 'final' and (row['model'], row['weights'], row['kind']) == key:
            found.setdefault(row['dimension'], {})[row['seed']] = row['test/accuracy']
    return {d: [each[seed] for seed in sorted(each)] for d, each in sorted(found.items())}


def direct(rows: Sequence[Row], key: Key) -> list[float]:
    """The accuracies with all weights of the layers, one a seed."""
    return curve(rows, (*key[:2], 'direct'))[0]


def dimensions(rows: Sequence[Row], key: Key, line: Key | None = None) -> Needed:
    """d90 of each seed.

    Args:
        rows: of the results.
        key: the curve.
        line: whose accuracy with all weights counts; the curve's own unless given.
    """
    return needed(curve(rows, key), direct(rows, key if line is None else line))


def keys(rows: Sequence[Row]) -> list[Key]:
    """The curves, in the order in which they were measured."""
    found = [(row['model'], row['weights'], row['kind']) for row in rows]
    return [key for key in dict.fromkeys(found) if key[2] != 'direct']


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims of Aghajanyan et al. that this study can test."""
    pretrained: Key = ('minilm', 'pretrained', 'SAID')
    weights = next(
        row['trained'] for row in rows if row['kind'] == 'direct' and row['model'] == 'minilm'
    )
    own = dimensions(rows, pretrained)
    spared = ratio(Needed([float(weights)] * len(own.values)), own)
    made = [
        Claim(
            'Fewer than 0.1 % of the weights are enough for 90 % of the accuracy of fine-tuning a '
            'pretrained encoder.',
            AGHAJANYAN,
            f'MiniLM on TREC, d90: {own.show()}; weights over d90: {spared.show()}',
            *spared.above(1000.0, 'weights over d90'),
        )
    ]
    found = ratio(dimensions(rows, ('minilm', 'permuted', 'SAID'), pretrained), own)
    made.append(
        Claim(
            'Pretrained weights need fewer dimensions than the same numbers in a random order, for '
            'the same accuracy.',
            AGHAJANYAN,
            'MiniLM, d90 with permuted matrices over d90 pretrained, by the line of the '
            f'pretrained: {found.show()}',
            *found.above(1.0),
        )
    )
    made.append(_steps(rows))
    last = _stages(rows)[-1]
    kinds = ratio(
        dimensions(rows, ('small', last, 'DID')), dimensions(rows, ('small', last, 'SAID'))
    )
    made.append(
        Claim(
            'A scale for each layer (SAID) lowers the dimension that is needed.',
            AGHAJANYAN,
            f'the small BERT after {last} steps, d90 of DID over d90 of SAID: {kinds.show()}',
            *kinds.above(1.0),
        )
    )
    return made


def _stages(rows: Sequence[Row]) -> list[str]:
    found = [key[1] for key in keys(rows) if key[0] == 'small' and key[2] == 'SAID']
    return sorted(found, key=int)


def _steps(rows: Sequence[Row]) -> Claim:
    """Does d90 fall with pretraining? The slope over the stages, by the line of the last one."""
    stages = _stages(rows)
    line: Key = ('small', stages[-1], 'SAID')
    ends = [dimensions(rows, ('small', each, 'SAID'), line) for each in stages]
    logs = np.log([each.values for each in ends])
    places = np.arange(len(stages)) - (len(stages) - 1) / 2
    slopes = (places @ logs) / (places @ places)
    unreached = [each.unreached > 0 for each in ends]
    fall = Ratio(interval((-slopes).tolist()), least=unreached[0], most=any(unreached[1:]))
    told = ', '.join(f'{stage}: {each.show()}' for stage, each in zip(stages, ends, strict=True))
    said, _ = fall.above(1.0)
    return Claim(
        'The dimension that is needed falls with the steps of pretraining.',
        AGHAJANYAN,
        f'a small BERT, d90 after steps ({told}) by the line of the last; it falls by a factor of '
        f'{fall.show()} from stage to stage',
        said,
        'By the slope of log d90 over the stages, seed by seed.',
    )


def text(rows: Sequence[Row]) -> str:
    """The dimensions and accuracies as tables in Markdown."""
    lines = [
        'd90 is the dimension at which a curve reaches 90 % of the accuracy with all weights of '
        'the '
        'layers: of its own start, or of the last start of the same model (pretrained; after all '
        'steps). Where no dimension reaches the line, the greatest one counts, marked ≥.',
        '',
        '| model | start | kind | accuracy of all weights | rate | d90, own line | d90, line of '
        'the '
        'pretrained | mean accuracy by dimension |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for key in keys(rows):
        rate = next(
            row['rate']
            for row in rows
            if row['stage'] == 'final' and (row['model'], row['weights'], row['kind']) == key
        )
        last = 'pretrained' if key[0] == 'minilm' else _stages(rows)[-1]
        own, shared = dimensions(rows, key), dimensions(rows, key, (key[0], last, key[2]))
        means = [f'{d}: {np.mean(each):.3f}' for d, each in curve(rows, key).items()]
        lines.append(
            f'| {key[0]} | {key[1]} | {key[2]} | {interval(direct(rows, key)).show()} | {rate:g} '
            f'| {own.show()} | {shared.show()} '
            f'| {", ".join(means)} |'
        )
    return '\n'.join(lines) + '\n'


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws both models into a PNG."""
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    for axes, model in zip(figure.subplots(1, 2, sharey=True), ('minilm', 'small'), strict=True):
        shown = [key for key in keys(rows) if key[0] == model]
        for number, key in enumerate(shown):
            _draw_curve(axes, rows, key, f'C{number}')
        axes.set_xscale('log')
        axes.set(xlabel='dimensions that train', ylabel='accuracy', title=_TITLES[model])
        axes.grid(alpha=0.3)
        if shown:
            axes.legend(fontsize=8)
    with new_file(path) as new:
        figure.savefig(new, dpi=110)


_TITLES = {'minilm': 'MiniLM', 'small': 'a small BERT, pretrained here'}


def _draw_curve(axes: Axes, rows: Sequence[Row], key: Key, colour: str) -> None:
    found = {d: interval(each) for d, each in curve(rows, key).items()}
    means = [each.mean for each in found.values()]
    errors = [each.high - each.mean if each.seeds > 1 else 0.0 for each in found.values()]
    start = key[1] if key[0] == 'minilm' else f'{key[1]} steps'
    label = f'{start}, {key[2]}'
    axes.errorbar(
        list(found), means, errors, marker='o', ms=4, capsize=2, color=colour, label=label
    )
    axes.axhline(LINE * float(np.mean(direct(rows, key))), color=colour, ls='--', lw=0.8)
