"""The results of a comparison of methods: scores, table, figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.studies.results import Row
from peftjax.train.files import new_file


class Score(NamedTuple):
    """The score of a method: mean and deviation of the accuracy over its final fits."""

    method: str
    trainable: int
    percent: float
    rate: float
    mean: float
    deviation: float
    loss: float
    seeds: int


def scores(rows: Sequence[Row]) -> list[Score]:
    """One score for each method with final fits, the best first."""
    finals: dict[str, list[Row]] = {}
    for row in rows:
        if row['stage'] == 'final':
            finals.setdefault(row['method'], []).append(row)
    found = []
    for method, fits in finals.items():
        accuracies = [fit['test/accuracy'] for fit in fits]
        first = fits[0]
        found.append(
            Score(
                method=method,
                trainable=first['trainable'],
                percent=100 * first['trainable'] / first['base'],
                rate=first['rate'],
                mean=float(np.mean(accuracies)),
                deviation=float(np.std(accuracies, ddof=1)) if len(fits) > 1 else math.nan,
                loss=float(np.mean([fit['test/loss'] for fit in fits])),
                seeds=len(fits),
            )
        )
    return sorted(found, key=lambda score: -score.mean)


def table(rows: Sequence[Row]) -> str:
    """The scores as a table in Markdown."""
    lines = [
        '| method | trained | % of the base | rate | accuracy (mean ± deviation) | loss | seeds |',
        '|---|---|---|---|---|---|---|',
    ]
    for s in scores(rows):
        lines.append(
            f'| {s.method} | {s.trainable:,} | {s.percent:.3g} | {s.rate:g} '
            f'| {s.mean:.3f} ± {s.deviation:.3f} | {s.loss:.3f} | {s.seeds} |'
        )
    return '\n'.join(lines) + '\n'


def draw(rows: Sequence[Row], path: Path, ends: Sequence[str] = ('frozen', 'full')) -> None:
    """Draws accuracy against trained parameters, with deviations, into a PNG.

    Args:
        rows: of a results.jsonl.
        path: the file to write.
        ends: methods that also get a horizontal line across the picture.
    """
    found = scores(rows)
    figure = Figure(figsize=(12, 7), layout='constrained')
    axes = figure.subplots()
    colours = [colormaps['tab20'](i % 20) for i in range(len(found))]
    for score, colour in zip(found, colours, strict=True):
        axes.errorbar(
            score.trainable,
            score.mean,
            yerr=score.deviation,
            fmt='o',
            color=colour,
            markersize=5,
            capsize=2,
            linewidth=1,
            label=f'{score.mean:.3f}  {score.method}',
        )
        axes.annotate(
            score.method,
            (score.trainable, score.mean),
            xytext=(4, 3),
            textcoords='offset points',
            fontsize=7,
        )
        if score.method in ends:
            axes.axhline(score.mean, color=colour, linestyle='--', linewidth=1)
    axes.set_xscale('log')
    axes.set(xlabel='trained parameters', ylabel='accuracy on unseen films, mean of seeds')
    axes.grid(alpha=0.3)
    columns = 1 + len(found) // 40
    figure.legend(
        loc='outside right upper', fontsize=7, ncols=columns, title='accuracy, best first'
    )
    with new_file(path) as new:
        figure.savefig(new, dpi=120)
