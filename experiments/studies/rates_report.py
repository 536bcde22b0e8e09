"""The report of the study of rates: claims, tables, figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.claims import Claim, Interval, Ratio, interval, within
from experiments.studies.questions import FULL, title
from experiments.studies.rates import REACH, rate_of
from peftjax.train.files import new_file

Row = Mapping[str, Any]
Losses = Mapping[str, Mapping[int, np.ndarray]]
"""Validation losses by method and place on the grid of rates, one for each seed."""

PUBLISHED = 10.0
"""LoRA's best rate over that of full fine-tuning, as the paper rounds it."""
FACTOR = 2.0
"""Ratios within this factor count as equal; the grid has steps of 1.8."""
SCHULMAN = 'Schulman et al. 2025 (LoRA without regret)'
CAPTION = (
    'The validation loss of MiniLM on TREC questions after 64 steps, over the learning rate. '
    'Markers are means of five seeds, bars their 95 % intervals. The lines are parabolas through '
    'the five means around the least one of a method. The dashed lines stand at the best rates: '
    'the means of the vertices of the seeds.'
)


def losses(rows: Sequence[Row]) -> Losses:
    """The losses, methods in the order of the rows.

    Raises:
        ValueError: a rate lacks a seed, or a method a rate near its best one.
    """
    found: dict[str, dict[int, dict[int, float]]] = {}
    for row in rows:
        places = found.setdefault(row['method'], {})
        places.setdefault(row['quarters'], {})[row['seed']] = row['validation/loss']
    seeds = {tuple(sorted(each)) for places in found.values() for each in places.values()}
    made = {
        method: {place: np.array([each[s] for s in sorted(each)]) for place, each in places.items()}
        for method, places in found.items()
    }
    if len(seeds) != 1 or not all(set(_window(each)) <= set(each) for each in made.values()):
        raise ValueError('rates or seeds are missing: run the study to its end')
    return {method: dict(sorted(each.items())) for method, each in made.items()}


def _window(places: Mapping[int, np.ndarray]) -> list[int]:
    """The places of a fit: those around the least mean loss."""
    # A loss that is no number counts as infinite, as in the search.
    best = min(places, key=lambda place: np.nan_to_num(places[place].mean(), nan=np.inf))
    return list(range(best - REACH, best + REACH + 1))


def vertex(places: Sequence[int], values: Sequence[float]) -> float | None:
    """Where a parabola through the logarithms of some losses has its minimum.

    Returns:
        A place, between those of the grid; None if the parabola has no minimum among them.

    Example:
        >>> round(vertex([0, 1, 2, 3], [math.exp((x - 1.25) ** 2) for x in range(4)]), 6)
        1.25
        >>> vertex([0, 1, 2], [1.0, 2.0, 1.0]) is None
        True
    """
    square, line, _ = np.polyfit(places, np.log(values), 2)
    if square <= 0:
        return None
    found = float(-line / (2 * square))
    return found if min(places) <= found <= max(places) else None


def best(found: Losses) -> dict[str, list[float | None]]:
    """The best place of each method and seed."""
    made = {}
    for method, places in found.items():
        near = _window(places)
        table = np.array([places[place] for place in near])
        made[method] = [vertex(near, column.tolist()) for column in table.T]
    return made


def _ratio(over: Sequence[float | None], under: Sequence[float | None]) -> Interval | None:
    """The logarithm of a ratio of rates, from places in quarters of a decade."""
    pairs = [(a, b) for a, b in zip(over, under, strict=True) if a is not None and b is not None]
    if len(pairs) < len(over):
        return None
    return interval([(a - b) / 4 * math.log(10) for a, b in pairs])


def _mean(values: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The mean place over methods, for each seed."""
    columns = [[place for place in each if place is not None] for each in zip(*values, strict=True)]
    return [sum(each) / len(each) if len(each) == len(values) else None for each in columns]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims about rates, decided by ratios of the same seed."""
    found = best(losses(rows))
    ranks = [method for method in found if method != FULL]
    over = _ratio(_mean([found[method] for method in ranks]), found[FULL])
    least, most = (title(method).removeprefix('LoRA, ') for method in (ranks[0], ranks[-1]))
    across = _ratio(found[ranks[-1]], found[ranks[0]])
    return [
        _claim(
            "LoRA's best learning rate is about ten times that of full fine-tuning.",
            over,
            PUBLISHED,
            "LoRA's best rate, mean of ranks, over that of full fine-tuning",
        ),
        _claim(
            "LoRA's best learning rate is the same at the least and the greatest rank.",
            across,
            1.0,
            f'the best rate at {most} over that at {least}',
        ),
    ]


def _claim(text: str, found: Interval | None, published: float, about: str) -> Claim:
    if found is None:
        why = 'Some seeds have no best rate among those tried.'
        return Claim(text, SCHULMAN, f'{about}: none', 'not decidable here', why)
    shift = math.log(published)
    mean, low, high = (each - shift for each in found[:3])
    verdict, why = within(
        Interval(mean, low, high, found.seeds),
        math.log(FACTOR),
        f'Within a factor of {FACTOR:g} of {published:g}.',
    )
    return Claim(text, SCHULMAN, f'{about}: {Ratio(found).show()}', verdict, why)


def text(rows: Sequence[Row]) -> str:
    """Tables of the study in Markdown."""
    found = losses(rows)
    trained = {row['method']: row['trainable'] for row in rows}
    ends = best(found)
    lines = [
        'The best rate of each method by its parabolas (95 % interval), and the loss at the best '
        'rate of the grid:\n',
        '| method | trained | best rate | over full | least mean loss | at |',
        '|---|---|---|---|---|---|',
    ]
    for method, places in found.items():
        near = _window(places)
        over = _ratio(ends[method], ends[FULL])
        lines.append(
            f'| {title(method)} | {trained[method]:,} | {_rates(ends[method])} '
            f'| {"none" if over is None else Ratio(over).show()} '
            f'| {interval(places[near[REACH]].tolist()).show()} | {rate_of(near[REACH]):g} |'
        )
    return '\n'.join(lines) + '\n'


def _rates(places: Sequence[float | None]) -> str:
    whole = [place for place in places if place is not None]
    if len(whole) < len(places):
        return f'{len(places) - len(whole)} of {len(places)} seeds have none'
    mean, low, high = (10 ** (each / 4) for each in interval(whole)[:3])
    return f'{mean:.2g} ({low:.2g} to {high:.2g}; n = {len(places)})'


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws the loss over the rate, a curve for each method."""
    found = losses(rows)
    ends = best(found)
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    for number, (method, places) in enumerate(found.items()):
        color = f'C{number}'
        bars = [interval(values.tolist()) for values in places.values()]
        axes.errorbar(
            [10 ** (place / 4) for place in places],
            [each.mean for each in bars],
            yerr=[each.high - each.mean for each in bars],
            fmt='o', color=color, markersize=4, capsize=3, label=title(method),
        )  # fmt: skip
        near = _window(places)
        parabola = np.polyfit(near, np.log([places[place].mean() for place in near]), 2)
        fine = np.linspace(near[0], near[-1], 100)
        axes.plot(10 ** (fine / 4), np.exp(np.polyval(parabola, fine)), color=color)
        if whole := [place for place in ends[method] if place is not None]:
            mean = 10 ** (sum(whole) / len(whole) / 4)
            axes.axvline(mean, color=color, linestyle='--', linewidth=1)
    axes.set(xscale='log', yscale='log', xlabel='learning rate', ylabel='validation loss')
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(path) as new:
        figure.savefig(new, dpi=110)
