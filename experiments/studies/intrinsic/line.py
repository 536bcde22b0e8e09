"""Where curves of accuracy over dimension cross a line, and ratios of such dimensions."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.studies.claims import Interval, Verdict, interval, verdict

LINE = 0.9
"""The share of the accuracy with all weights that counts as reached, as in both papers."""


def crossing(curve: Mapping[int, float], line: float) -> float:
    """The dimension at which accuracy first reaches the line, by interpolation in `log d`.

    Args:
        curve: accuracy by dimension.
        line: an accuracy.

    Returns:
        Infinity where no dimension reaches it; the least dimension where that one does.

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
        values: one a seed; where no dimension is enough, the greatest one that was tried.
        unreached: how many seeds that is: for these the value is a bound from below.
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
        curve: accuracies by dimension, one a seed.
        whole: accuracies with all weights, one a seed.

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


class Ratio(NamedTuple):
    """A ratio, seed by seed.

    Attributes:
        log: the interval of its logarithm.
        least: whether the ratio may be greater: some dividends are bounds from below.
        most: whether it may be less: some divisors are bounds from below.
    """

    log: Interval
    least: bool = False
    most: bool = False

    def show(self) -> str:
        """The geometric mean and its interval.

        Example:
            >>> ratio(Needed([200.0, 200.0]), Needed([100.0, 100.0])).show()
            '2.00 (2.00 to 2.00; n = 2)'
        """
        mean, low, high = (math.exp(each) for each in self.log[:3])
        if self.least and self.most:
            return f'{mean:.2f}, of bounds on both sides; n = {self.log.seeds}'
        if self.least:
            return f'≥ {mean:.2f} ({low:.2f} or more; n = {self.log.seeds})'
        if self.most:
            return f'≤ {mean:.2f} ({high:.2f} or less; n = {self.log.seeds})'
        return f'{mean:.2f} ({low:.2f} to {high:.2f}; n = {self.log.seeds})'

    def above(self, bound: float, name: str = 'the ratio') -> tuple[Verdict, str]:
        """Whether the ratio is greater than a bound, and why."""
        said = verdict(self.log, math.log(bound))
        open_side = {'confirmed': self.most, 'contradicted': self.least}
        if open_side.get(said, self.least or self.most):
            return 'not decidable here', 'Some seeds never reach the line.'
        side = {'confirmed': 'above', 'contradicted': 'below'}.get(said)
        if side is None:
            return said, f'The interval of {name} holds {bound:g}.'
        return said, f'The whole interval of {name} lies {side} {bound:g}.'

    def within(self, factor: float) -> tuple[Verdict, str]:
        """Whether the ratio is 1 up to a factor, and why."""
        if self.least or self.most:
            return 'not decidable here', 'Some seeds never reach the line.'
        return within(self.log, math.log(factor), f'Equal means within a factor of {factor:g}.')


def ratio(over: Needed, under: Needed) -> Ratio:
    """The ratio of two dimensions that are needed."""
    pairs = zip(over.values, under.values, strict=True)
    log = interval([math.log(a / b) for a, b in pairs])
    return Ratio(log, over.unreached > 0, under.unreached > 0)


def within(found: Interval, bound: float, meaning: str) -> tuple[Verdict, str]:
    """Whether an effect is 0, up to a bound that `meaning` states."""
    if -bound < found.low and found.high < bound:
        return 'confirmed', meaning
    if found.low > bound or found.high < -bound:
        return 'contradicted', meaning
    return 'not decidable here', meaning
