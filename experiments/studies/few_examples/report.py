"""The reports of the studies of few examples: claims, tables, figure."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.claims import Claim, Interval, interval, judged
from peftjax.train.files import new_file

Row = Mapping[str, Any]
Scores = Mapping[str, Mapping[int, np.ndarray]]
"""Accuracy on test by method and number of examples, one for each seed, in the order of seeds."""

FULL = 'full'
TITLES = {
    FULL: 'full fine-tuning',
    'lora': 'LoRA, rank 8, all kernels',
    'lora_qv': 'LoRA, rank 8, query and value',
    'bottleneck': 'bottleneck adapters (Pfeiffer)',
    'ia3': '(IA)³',
    'bitfit': 'BitFit',
    'prefix': 'prefix tuning',
    'head': 'head only',
}
FEW = 100
"""Sizes up to this one count as few examples."""
ENOUGH = 95
"""The share of the accuracy at the greatest size, in percent, that is called enough."""
HE = 'He et al. 2021 (arXiv:2106.03164)'
HU = 'Hu et al. 2021 (arXiv:2106.09685), low-data regime'
TFEW = 'Liu et al. 2022 (arXiv:2205.05638)'


def scores(rows: Sequence[Row]) -> Scores:
    """The final accuracies, methods in the order of the rows.

    Raises:
        ValueError: methods have different seeds at a size, or a seed has two final models.
    """
    found: dict[str, dict[int, dict[int, float]]] = {}
    for row in rows:
        if row['stage'] == 'final':
            method, examples, seed = row['method'], row['examples'], row['seed']
            models = found.setdefault(method, {}).setdefault(examples, {})
            if seed in models:
                raise ValueError(
                    f'two final models of {method} with seed {seed} on {examples} examples: delete '
                    'the row of the one whose rate was not chosen'
                )
            models[seed] = row['test/accuracy']
    seeds = {tuple(sorted(each)) for sizes in found.values() for each in sizes.values()}
    if len(seeds) != 1:
        raise ValueError(
            f'the final models have the seeds {sorted(seeds)}: run the study to its end'
        )
    return {
        method: {n: np.array([each[s] for s in sorted(each)]) for n, each in sorted(sizes.items())}
        for method, sizes in found.items()
    }


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of a study of few examples.

    Attributes:
        noun: what the examples are, in the plural.
        unseen: what the models are tested on.
    """

    noun: str
    unseen: str

    @property
    def CAPTION(self) -> str:
        """The caption of the figure."""
        return (
            f'Accuracy on {self.unseen} (left), and its difference to full fine-tuning with the '
            f'same seed (right), over the number of {self.noun} that MiniLM is trained on. Markers '
            'are means of five seeds, bars their 95 % intervals. Above the dashed line a method '
            'beats full fine-tuning. The markers of a size stand side by side so that they can be '
            'told apart.'
        )

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        """The claims about few examples, decided by paired differences of seeds."""
        found = scores(rows)
        sizes = list(found[FULL])
        few, most = [n for n in sizes if n <= FEW], sizes[-1]
        said = ' and '.join(map(str, few))

        def gain(method: str, some: Sequence[int]) -> np.ndarray:
            return np.mean([found[method][n] - found[FULL][n] for n in some], axis=0)

        made = []
        for method, name, source in (
            ('bottleneck', 'Bottleneck adapters are', HE),
            ('ia3', '(IA)³ is', TFEW),
            ('lora', 'LoRA is', HU),
        ):
            if method in found:
                difference = interval(gain(method, few).tolist())
                effect = f'{_points(difference)} of accuracy over full at {said} {self.noun}'
                text = f'{name} more accurate than full fine-tuning when {self.noun} are few.'
                made.append(Claim(text, source, effect, *judged(difference)))
        if 'bottleneck' in found:
            fall = interval((gain('bottleneck', few) - gain('bottleneck', [most])).tolist())
            made.append(
                Claim(
                    'The gain of adapters over full fine-tuning shrinks as '
                    f'{self.noun} become more.',
                    HE,
                    f'{_points(fall)} of gain lost from {said} to {most:,} {self.noun}',
                    *judged(fall),
                )
            )
        for count in [n for n in sizes if FEW < n < most]:
            share = interval([100 * each for each in _share(found, 'lora', count)])
            made.append(
                Claim(
                    f'{count:,} {self.noun} are enough: LoRA reaches {ENOUGH} % of its accuracy at '
                    f'{most:,}.',
                    'rule of thumb',
                    f'{share.show(1)} % of the accuracy at {most:,} {self.noun}',
                    *judged(share, ENOUGH),
                )
            )
        return made

    def text(self, rows: Sequence[Row]) -> str:
        """Tables of the study in Markdown."""
        found = scores(rows)
        parts = [
            _budgets(rows, self.noun),
            'Accuracy on test (95 % interval), with the trained parameters:\n',
            _accuracies(rows, found),
            'Difference of accuracy to full fine-tuning in points, seed by seed (95 % interval; '
            'bold where it leaves out 0), and where the mean difference changes its sign:\n',
            _differences(found),
            f'Accuracy as a share of the accuracy at {_sizes(found)[-1]:,} {self.noun}, in % '
            '(95 % interval):\n',
            _table(found, lambda method, n: interval(_share(found, method, n)).show(1, 100)),
            'Rates that validation chose:\n',
            _rates(rows, found),
            _together(rows),
        ]
        return '\n'.join(parts)

    def draw(self, rows: Sequence[Row], path: Path) -> None:
        """Draws accuracy, and its difference to full fine-tuning, over the number of examples."""
        found = scores(rows)
        figure = Figure(figsize=(12, 5.2), layout='constrained')
        left, right = figure.subplots(1, 2)
        for number, (method, curve) in enumerate(found.items()):
            shift = 1.04 ** (number - (len(found) - 1) / 2)
            style = {'color': f'C{number}', 'marker': 'o', 'markersize': 4, 'capsize': 3}
            places = [n * shift for n in curve]
            for axes, each in ((left, curve), (right, _less(curve, found[FULL]))):
                if axes is left or method != FULL:
                    intervals = [interval(values.tolist()) for values in each.values()]
                    means = [i.mean for i in intervals]
                    axes.errorbar(
                        places,
                        means,
                        yerr=[i.high - i.mean for i in intervals],
                        label=TITLES[method],
                        **style,
                    )
        right.axhline(0, color=f'C{list(found).index(FULL)}', linestyle='--')
        left.set(ylabel='accuracy on test', title='Accuracy of each method')
        right.set(
            ylabel='accuracy minus that of full fine-tuning', title='Difference to full, same seed'
        )
        for axes in (left, right):
            axes.set(xscale='log', xlabel=f'{self.noun} trained on')
            axes.set_xticks(_sizes(found), [f'{n:,}' for n in _sizes(found)])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        left.legend(loc='lower right')
        with new_file(path) as new:
            figure.savefig(new, dpi=110)


QUESTIONS = Report('questions', 'unseen TREC questions of six kinds')
REVIEWS = Report('review sentences', 'sentences of reviews of unseen films, fresh or rotten')


def _points(found: Interval) -> str:
    return f'{found.show(1, 100)} points'


def sign_changes(sizes: Sequence[int], differences: Sequence[float]) -> list[float]:
    """The numbers of examples at which a mean difference changes its sign.

    Differences are joined by straight lines over the logarithm of the size.

    Example:
        >>> sign_changes([10, 1000], [0.1, -0.1])
        [100.0]
    """
    found = []
    logs = np.log(sizes)
    for i in range(len(sizes) - 1):
        before, after = differences[i], differences[i + 1]
        if before * after < 0:
            place = logs[i] + (logs[i + 1] - logs[i]) * before / (before - after)
            found.append(round(math.exp(place), 6))
    return found


def _budgets(rows: Sequence[Row], noun: str) -> str:
    finals = {row['examples']: row for row in rows if row['stage'] == 'final'}
    seeds: dict[int, set[int]] = {size: set() for size in finals}
    for row in rows:
        if row['stage'] == 'tune':
            seeds[row['examples']].add(row['seed'])
    lines = [
        'Runs of each size. Where no seed chose the rate, it is that of the size before:\n',
        f'| {noun} | steps | batch | seeds that chose the rate |',
        '|---|---|---|---|',
    ]
    for size, row in sorted(finals.items()):
        lines.append(
            f'| {size:,} | {row["steps"]} | {row["batch_size"]} | {len(seeds[size]) or "none"} |'
        )
    return '\n'.join(lines) + '\n'


def _sizes(found: Scores) -> list[int]:
    return list(found[FULL])


def _share(found: Scores, method: str, count: int) -> list[float]:
    return (found[method][count] / found[method][_sizes(found)[-1]]).tolist()


def _table(
    found: Scores,
    cell: Callable[[str, int], str],
    last: tuple[str, Callable[[str], str]] | None = None,
    leave: Sequence[str] = (),
) -> str:
    names = [f'{n:,}' for n in _sizes(found)] + ([last[0]] if last else [])
    lines = [f'| method | {" | ".join(names)} |', '|---' * (len(names) + 1) + '|']
    for method in found:
        if method not in leave:
            cells = [cell(method, n) for n in _sizes(found)] + ([last[1](method)] if last else [])
            lines.append(f'| {TITLES[method]} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _accuracies(rows: Sequence[Row], found: Scores) -> str:
    trained = {row['method']: row['trainable'] for row in rows if 'trainable' in row}
    return _table(
        found,
        lambda method, n: interval(found[method][n].tolist()).show(),
        ('trained', lambda method: f'{trained[method]:,}'),
    )


def _differences(found: Scores) -> str:
    def cell(method: str, count: int) -> str:
        difference = interval((found[method][count] - found[FULL][count]).tolist())
        shown = difference.show(1, 100)
        return shown if difference.low <= 0 <= difference.high else f'**{shown}**'

    def crossed(method: str) -> str:
        means = [float((found[method][n] - found[FULL][n]).mean()) for n in _sizes(found)]
        return ', '.join(f'{n:.0f}' for n in sign_changes(_sizes(found), means)) or 'nowhere'

    return _table(found, cell, ('crosses full at', crossed), leave=(FULL,))


def _rates(rows: Sequence[Row], found: Scores) -> str:
    rates = {
        (row['method'], row['examples']): row['rate'] for row in rows if row['stage'] == 'final'
    }
    return _table(found, lambda method, n: f'{rates[method, n]:g}')


def _together(rows: Sequence[Row]) -> str:
    factors = [
        f'{row["factor"]:.2f} for {TITLES[row["method"]]}'
        for row in rows
        if row['stage'] == 'together'
    ]
    runs = next(row['runs'] for row in rows if row['stage'] == 'together')
    return (
        f'Speed of {runs} runs in one program against one run after another: '
        f'{", ".join(factors)}.\n'
    )


def _less(curve: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> dict:
    return {n: values - other[n] for n, values in curve.items()}
