"""Settings of a sweep over their seeds: means, confidence intervals, and paired differences."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from peftjax.sweep.names import Line, setting_names
from peftjax.sweep.score import smaller_is_better

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean, and the confidence interval around it.

    Attributes:
        mean: of the values. deviation: of the sample, with `n - 1`; NaN for one value.
        low, high: ends of the interval; NaN for one value. n: how many values.
    """

    mean: float
    deviation: float
    low: float
    high: float
    n: int


def t_quantile(freedom: int) -> float:
    """t with `P(|T| <= t) = 0.95` for Student's T with the given degrees of freedom.

    Example:
        >>> round(t_quantile(2), 3)
        4.303
    """
    return float(special.stdtrit(freedom, 0.5 + LEVEL / 2))


def interval(values: Sequence[float]) -> Interval:
    """The mean m of n values and its 95 % interval `m ± t s / √n`.

    s is the deviation of the sample, `s² = Σ (x - m)² / (n - 1)`, and t the 0.975 quantile of
    Student's distribution with n - 1 degrees of freedom. It holds if the values are independent and
    normal, which seeds of one setting are roughly.

    Source: Student (1908), https://doi.org/10.1093/biomet/6.1.1.

    Example:
        >>> [round(each, 3) for each in interval([1.0, 2.0, 3.0])[:4]]
        [2.0, 1.0, -0.484, 4.484]
    """
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean, math.nan, math.nan, math.nan, count)
    deviation = float(np.std(values, ddof=1))
    half = t_quantile(count - 1) * deviation / math.sqrt(count)
    return Interval(mean, deviation, mean - half, mean + half, count)


class Setting(NamedTuple):
    """Runs that differ only in their seed.

    Attributes:
        name: what they change. score: over the runs that ended.
        begun: all runs of the setting, including runs that diverged, were stopped, or still train.
        difference: from the reference, seed by seed; None if no seed is shared, and for the
          reference itself.
        trainable: trained parameters. tflop: of a run, the mean.
        label: in the legend of a chart.
    """

    name: str
    score: Interval
    begun: int
    difference: Interval | None
    trainable: float | None
    tflop: float | None
    label: str


def settings(
    lines: Sequence[Line],
    fields: Sequence[str],
    metric: str,
    smaller: bool | None = None,
    reference: str | None = None,
    labels: Sequence[str] | None = None,
) -> list[Setting]:
    """The settings of a sweep with their scores over seeds, the best first.

    Only runs that trained to their end count: the score of a stopped run is of another step. Each
    setting is compared with a reference by the differences `d = x - r` of runs with the same seed,
    whose interval is `interval(d)`. The effect of a seed on both (the order of the data, a new
    head) cancels in `d`. So this interval can separate settings whose means have overlapping
    intervals.

    Args:
        lines: of `SweepFolder.results`.
        fields: its columns that hold what runs change, `config.*`.
        metric: the column to compare. smaller: True if the least value is the best; None decides by
          the name of the metric.
        reference: name of the setting to compare with; None is the best.
        labels: of each line, in the legend of a chart; none if not given.

    Example:
        >>> line = {'config.lr': 0.1, 'status': 'done', 'test/f1': 0.5}
        >>> lines = [{**line, 'seed': 0}, {**line, 'seed': 1, 'test/f1': 1.5}]
        >>> found = settings(lines, ['config.lr'], 'test/f1')
        >>> found[0].name, found[0].score.mean, found[0].score.n
        ('lr=0.1', 1.0, 2)
    """
    labels = [''] * len(lines) if labels is None else labels
    named: dict[str, list[tuple[Line, str]]] = {}
    for line, name, label in zip(lines, setting_names(lines, fields), labels, strict=True):
        named.setdefault(name, []).append((line, label))
    begun = {name: len(members) for name, members in named.items()}
    kept = {n: [m for m in members if ended(m[0], metric)] for n, members in named.items()}
    kept = {name: members for name, members in kept.items() if members}
    scores = {name: {line['seed']: line[metric] for line, _ in m} for name, m in kept.items()}
    smaller = smaller_is_better(metric) if smaller is None else smaller
    means = {n: interval([line[metric] for line, _ in members]) for n, members in kept.items()}
    order = sorted(means, key=lambda name: means[name].mean * (1 if smaller else -1))
    against = scores.get(reference or (order[0] if order else ''), {})
    return [
        Setting(
            name,
            means[name],
            begun[name],
            _difference(scores[name], against),
            kept[name][0][0].get('trainable'),
            _mean([line['tflop'] for line, _ in kept[name] if line.get('tflop') is not None]),
            kept[name][0][1],
        )
        for name in order
    ]


def ended(line: Line, metric: str) -> bool:
    """Whether a run trained to its end and has a finite number there."""
    value = line.get(metric)
    number = isinstance(value, int | float) and math.isfinite(value)
    return line['status'] == 'done' and number


def _difference(scores: Mapping[int, float], reference: Mapping[int, float]) -> Interval | None:
    shared = [seed for seed in scores if seed in reference]
    if not shared or scores is reference:
        return None
    return interval([scores[seed] - reference[seed] for seed in shared])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
