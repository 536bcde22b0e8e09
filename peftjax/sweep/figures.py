"""The charts of a sweep as PNGs."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from peftjax.sweep.intervals import Setting, ended
from peftjax.sweep.names import Line, short, show
from peftjax.train.files import new_file

# Okabe and Ito's colours without the yellow. People with any colour vision can tell them apart.
COLOURS = '#0072b2 #d55e00 #009e73 #cc79a7 #56b4e9 #e69f00 #000000 #8c564b'.split()
_MARKS = 'osD^vPX*'
_LINES = '-', '--', ':', '-.'
# Text between two dollar signs, for example in targets, is not mathematics.
_PLAIN: Any = {'text.parse_math': False, 'text.usetex': False}


@matplotlib.rc_context(_PLAIN)
def scatter(
    file: Path,
    settings: Sequence[Setting],
    key: str,
    said: str,
    metric: str,
    labels: Sequence[str],
    title: str,
) -> None:
    """Plots score against the cost of a setting, with intervals; a colour for each label.

    Args:
        file: to write.
        settings: the best first.
        key: 'trainable' or 'tflop'. said: in words.
        metric: of the scores.
        labels: of all runs, in their order. title: of the legend.
    """
    points = [each for each in settings if getattr(each, key)]
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    places = _apart([getattr(each, key) for each in points], [_half(each) > 0 for each in points])
    for label, look in _looks(labels).items():
        some = [i for i, each in enumerate(points) if each.label == label]
        if some:
            axes.errorbar(
                [places[i] for i in some],
                [points[i].score.mean for i in some],
                [_half(points[i]) for i in some],
                label=label,
                markersize=7,
                capsize=3,
                linestyle='none',
                **look,
            )
    if points:
        axes.set_xscale('log')
        # Those of matplotlib for such an axis are mathematics.
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
        _limit(axes, points)
    axes.margins(x=0.12)
    best = f'\nbest: {points[0].name}, {points[0].score.mean:.4g}' if points else ''
    axes.set(xlabel=said, ylabel=metric)
    axes.set_title(f'Mean over seeds, with 95 % intervals{best}', fontsize=10, loc='left')
    _finish(figure, axes, title, file)


def _apart(values: Sequence[float], bars: Sequence[bool]) -> list[float]:
    """Moves equal values apart a little on a logarithmic axis, so that their bars are visible."""
    logs = [math.log10(value) for value in values]
    span = max(logs, default=0.0) - min(logs, default=0.0) or 1.0
    found = []
    for i, (value, log) in enumerate(zip(values, logs, strict=True)):
        same = [j for j, other in enumerate(values) if other == value and bars[j]]
        step = min(0.012, 0.06 / max(1, len(same))) * span
        move = step * (same.index(i) - (len(same) - 1) / 2) if i in same else 0.0
        found.append(10 ** (log + move))
    return found


def _limit(axes: Axes, points: Sequence[Setting]) -> None:
    """Cuts intervals that reach far beyond the means, such as those of two seeds."""
    means = [each.score.mean for each in points]
    room = max(means) - min(means) or math.inf
    reach = [min(_half(each), room) for each in points]
    low = min(mean - each for mean, each in zip(means, reach, strict=True))
    high = max(mean + each for mean, each in zip(means, reach, strict=True))
    edge = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - edge, high + edge)


def _half(setting: Setting) -> float:
    half = setting.score.high - setting.score.mean
    return half if math.isfinite(half) else 0.0


@matplotlib.rc_context(_PLAIN)
def curves(
    file: Path,
    name: str,
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    labels: Mapping[str, str],
    title: str,
    best: str | None,
) -> None:
    """Learning curves of all runs, a colour for each label, the best run drawn wider.

    Args:
        file: to write.
        name: of the number that is drawn.
        runs: lines of the log by the run's name. labels: in the legend, by the run's name.
        title: of the legend. best: name of the best run.
    """
    figure = Figure(figsize=(9, 5), layout='constrained')
    axes = figure.subplots()
    looks, told = _looks(labels.values()), set()
    order = list(looks)
    for run, points in runs.items():
        steps = [(point['step'], point[name]) for point in points if name in point]
        if not steps:
            continue
        label = labels[run]
        axes.plot(
            *zip(*steps, strict=True),
            label=None if label in told else label,
            color=looks[label]['color'],
            linestyle=_LINES[order.index(label) // 8 % 4],
            linewidth=2.6 if run == best else 1.2,
            marker='o' if len(steps) == 1 else None,
        )
        told.add(label)
    axes.set(xlabel='step', ylabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, axes, title, file)


def _looks(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and a mark for each label, the same in all charts of a sweep; 64 pairs."""
    return {
        label: {'color': COLOURS[i % 8], 'marker': _MARKS[(i + i // 8) % 8]}
        for i, label in enumerate(dict.fromkeys(labels))
    }


def _finish(figure: Figure, axes: Axes, title: str, file: Path) -> None:
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(fontsize=9, title=title, title_fontsize=9, loc='outside right upper')
    with new_file(file) as new:
        figure.savefig(new, dpi=150)


@matplotlib.rc_context(_PLAIN)
def heat_map(file: Path, lines: Sequence[Line], fields: Sequence[str], metric: str) -> None:
    """Plots the mean score for two fields as a map; writes no file if no run has ended.

    Args:
        file: to write.
        lines: of `SweepFolder.results`.
        fields: down, and across.
        metric: of the scores.
    """
    down, across = fields
    scored = [line for line in lines if ended(line, metric)]
    if not scored:
        return
    ys, xs = (bands([line.get(field) for line in scored]) for field in (down, across))
    cells = [
        [
            np.mean(
                [run[metric] for run in scored if run.get(down) in y and run.get(across) in x]
                or [np.nan]
            )
            for x in xs
        ]
        for y in ys
    ]
    size = min(24.0, 3 + 1.2 * len(xs)), min(24.0, 1.8 + 0.6 * len(ys))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(np.asarray(cells, float), cmap='viridis', aspect='auto')
    said = [_label(x) for x in xs]
    # Long names would run into each other.
    aslant = {'rotation': 30, 'ha': 'right'} if max(map(len, said)) > 14 else {}
    axes.set_xticks(range(len(xs)), said, **aslant)
    axes.set_yticks(range(len(ys)), [_label(y) for y in ys])
    axes.set(xlabel=short(across), ylabel=short(down))
    low, high = np.nanmin(cells), np.nanmax(cells)
    for (i, j), value in np.ndenumerate(np.asarray(cells)):
        if np.isfinite(value):
            bright = value > (low + high) / 2
            colour = 'black' if bright else 'white'
            axes.text(j, i, f'{value:.4g}', ha='center', va='center', fontsize=9, color=colour)
    figure.colorbar(image, label=metric)
    with new_file(file) as new:
        figure.savefig(new, dpi=150)


def bands(all_values: Sequence[Any]) -> list[list[Any]]:
    """Groups values into lines of the map: one line for each, or for neighbours of many numbers.

    Example:
        >>> bands([3, 1, 3])
        [[1], [3]]
        >>> bands(range(12))
        [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    """
    values = set(all_values)
    numbers = all(isinstance(value, int | float) for value in values)
    ordered = sorted(values, key=None if numbers else str)
    count = 6 if numbers and len(values) > 8 else len(values)
    ends = [round(i * len(values) / count) for i in range(count + 1)]
    return [ordered[first:last] for first, last in itertools.pairwise(ends)]


def _label(band: Sequence[Any]) -> str:
    return ' to '.join(dict.fromkeys((show(band[0]), show(band[-1]))))
