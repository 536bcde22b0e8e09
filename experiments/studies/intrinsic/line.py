"""Where curves of accuracy over dimension cross a line, and ratios of these dimensions."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.studies.claims import Ratio, interval

LINE = 0.9
"""The line is this share of the accuracy with all weights, as in both papers."""


def crossing(curve: Mapping[int, float], line: float) -> float:
    """The dimension at which accuracy first reaches the line, by interpolation in `log d`.

    Args:
        curve: accuracy by dimension.
        line: an accuracy.

    Returns:
        The dimension; infinity if none reaches the line, the least one if that reaches it already.

    Example:
        >>> round(crossing({10: 0.2, 100: 0.6, 1000: 0.8}, 0.7))
        316
        >>> crossing({10: 0.2}, 0.7)
        inf
    """
    below: tuple[int, float] | None = None
    for dimension, accuracy in sorted(curve.items()):
        if accuracy >= line:
            if below is None:
                return float(dimension)
            share = (line - below[1]) / (accuracy - below[1])
            start, end = math.log(below[0]), math.log(dimension)
            return math.exp(start + share * (end - start))
        below = dimension, accuracy
    return math.inf


class Needed(NamedTuple):
    """The dimension that each seed needs.

    Attributes:
        values: one for each seed; if no dimension is enough, the greatest that was tried.
        unreached: the number of seeds for which none is enough, so that the value is a lower bound.
    """

    values: list[float]
    unreached: int = 0

    def show(self) -> str:
        """The geometric mean and its interval.

        Example:
            >>> Needed([100.0, 100.0], unreached=1).show()
            '≥ 100 (100 or more); 1 of 2 seeds never reach it'
        """
        found = interval([math.log(each) for each in self.values])
        mean, low, high = (math.exp(each) for each in found[:3])
        text = f'{mean:.0f} ({low:.0f} to {high:.0f})'
        if not self.unreached:
            return text
        return (
            f'≥ {mean:.0f} ({low:.0f} or more); {self.unreached} of {found.seeds} seeds never '
            f'reach it'
        )


def needed(curve: Mapping[int, Sequence[float]], whole: Sequence[float]) -> Needed:
    """d90 of each seed: where its curve reaches 90 % of an accuracy with all weights.

    Args:
        curve: accuracies by dimension, one for each seed.
        whole: accuracies with all weights, one for each seed.

    Example:
        >>> needed({10: [0.8, 0.2], 100: [0.8, 0.3]}, [0.8, 0.8])
        Needed(values=[10.0, 100.0], unreached=1)
    """
    ends = [
        crossing({d: each[seed] for d, each in curve.items()}, LINE * accuracy)
        for seed, accuracy in enumerate(whole)
    ]
    most = float(max(curve))
    return Needed([min(most, each) for each in ends], sum(map(math.isinf, ends)))


def ratio(over: Needed, under: Needed) -> Ratio:
    """The ratio of two needed dimensions."""
    pairs = zip(over.values, under.values, strict=True)
    log = interval([math.log(a / b) for a, b in pairs])
    return Ratio(log, over.unreached > 0, under.unreached > 0)
