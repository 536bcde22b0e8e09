"""The report of the study on language models: claims, tables, figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.claims import Claim, Ratio, interval
from experiments.studies.intrinsic.curves import Curves, Key, at_the_edge, finish
from experiments.studies.intrinsic.language import Protocol
from experiments.studies.intrinsic.line import Needed, ratio
from experiments.studies.results import Row
from peftjax.train.files import new_file

AGHAJANYAN = 'Aghajanyan et al. 2020 (arXiv:2012.13255)'
CAPTION = (
    'Accuracy on unseen TREC questions over the number of dimensions that train. A marker is the '
    'mean of five seeds, a bar its 95 % interval, a dashed line 90 % of the accuracy with all '
    'weights of the layers. Left: MiniLM with its own weights, with the entries of each matrix '
    'permuted, and with random weights. Right: a small BERT after growing numbers of steps of '
    'pretraining. SAID trains a scale for each matrix too, DID does not.'
)


def curves_of(rows: Sequence[Row]) -> Curves:
    """The curves by model, start and kind."""
    return Curves(
        rows,
        ('model', 'weights', 'kind'),
        whole=lambda key: (*key[:2], 'direct'),
        score=lambda key: 'test/accuracy',
    )


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims of Aghajanyan et al. that this study can test."""
    pretrained: Key = ('minilm', 'pretrained', 'SAID')
    curves = curves_of(rows)
    weights = curves.weights(pretrained)
    own = curves.needed(pretrained)
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
    for start, words in (
        ('permuted', 'the same numbers in a random order'),
        ('random', 'random ones'),
    ):
        found = ratio(curves.needed(('minilm', start, 'SAID'), pretrained), own)
        made.append(
            Claim(
                f'Pretrained weights need fewer dimensions than {words}, for the same accuracy.',
                AGHAJANYAN,
                f'MiniLM, d90 with {start} matrices over d90 pretrained, by the line of the '
                f'pretrained: {found.show()}',
                *found.above(1.0),
            )
        )
    made.append(_steps(curves))
    last = _stages(curves)[-1]
    for model, start, words in (
        ('minilm', 'pretrained', 'MiniLM'),
        ('small', last, f'the small BERT after {last} steps'),
    ):
        kinds = ratio(*(curves.needed((model, start, kind)) for kind in ('DID', 'SAID')))
        made.append(
            Claim(
                f'A scale for each layer (SAID) lowers the dimension that {words} needs.',
                AGHAJANYAN,
                f'd90 of DID over d90 of SAID: {kinds.show()}',
                *kinds.above(1.0),
            )
        )
    return made


def _stages(curves: Curves) -> list[str]:
    found = [key[1] for key in curves.keys if key[0] == 'small' and key[2] == 'SAID']
    return sorted(found, key=int)


def _steps(curves: Curves) -> Claim:
    """The claim that d90 falls with pretraining, by the line of the last stage."""
    stages = _stages(curves)
    line: Key = ('small', stages[-1], 'SAID')
    ends = [curves.needed(('small', each, 'SAID'), line) for each in stages]
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
    curves = curves_of(rows)
    lines = [
        'd90 is the dimension at which a curve reaches 90 % of the accuracy with all weights of '
        'the layers: of its own start, or of the last start of the same model (pretrained; after '
        'all '
        'steps). Where no dimension reaches the line, the greatest one counts, marked ≥.',
        '',
        '| model | start | kind | accuracy of all weights | rate | d90, own line | d90, line of '
        'the pretrained | mean accuracy by dimension |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for key in curves.keys:
        last = 'pretrained' if key[0] == 'minilm' else _stages(curves)[-1]
        own, shared = curves.needed(key), curves.needed(key, (key[0], last, key[2]))
        lines.append(
            f'| {key[0]} | {key[1]} | {key[2]} | {interval(curves.whole(key)).show()} | '
            f'{curves.rate(key):g} '
            f'| {own.show()} | {shared.show()} '
            f'| {curves.means(key)} |'
        )
    lines += ['', at_the_edge(curves, Protocol().rates)]
    return '\n'.join(lines) + '\n'


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws both models into a PNG."""
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    curves = curves_of(rows)
    for axes, model in zip(figure.subplots(1, 2, sharey=True), _TITLES, strict=True):
        shown = [key for key in curves.keys if key[0] == model]
        for number, key in enumerate(shown):
            start = key[1] if model == 'minilm' else f'{key[1]} steps'
            curves.draw(axes, key, f'{start}, {key[2]}', f'C{number}')
        finish(axes, _TITLES[model])
    with new_file(path) as new:
        figure.savefig(new, dpi=110)


_TITLES = {'minilm': 'MiniLM', 'small': 'a small BERT, pretrained here'}
