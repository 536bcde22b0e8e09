"""Verdicts on published claims: the effect, its interval, and a verdict by a rule."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from peftjax.sweep import intervals

Verdict = Literal['confirmed', 'contradicted', 'not decidable here']


class Claim(NamedTuple):
    """A published claim, and what was measured.

    Attributes:
        claim: one sentence.
        source: the paper, with its number on arXiv.
        effect: the size of the effect, with its unit and its interval.
        verdict: follows from the interval, by a rule in the study's code.
        why: one sentence.
    """

    claim: str
    source: str
    effect: str
    verdict: Verdict
    why: str


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval, by Student's distribution.

    Attributes:
        mean: of the values.
        low, high: ends of the interval; infinite for a single value.
        seeds: the number of values.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def show(self, digits: int = 3, factor: float = 1.0) -> str:
        """The interval as text.

        >>> interval([0.1, 0.2, 0.3]).show(2)
        '0.20 (-0.05 to 0.45; n = 3)'
        """
        mean, low, high = (f'{factor * each:.{digits}f}' for each in self[:3])
        return f'{mean} ({low} to {high}; n = {self.seeds})'


def interval(values: Sequence[float]) -> Interval:
    """The mean of some values and its 95 % interval.

    Args:
        values: one for each seed.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError('an interval needs at least one value')
    found = intervals.interval(values)
    if found.n == 1:
        return Interval(found.mean, -math.inf, math.inf, 1)
    return Interval(found.mean, found.low, found.high, found.n)


def verdict(found: Interval, above: float = 0.0) -> Verdict:
    """Whether an effect is greater than a bound.

    Returns:
        'confirmed' if the whole interval is above the bound, 'contradicted' if it is below, else
        'not decidable here'.

    >>> verdict(interval([1.0, 1.1, 0.9])), verdict(interval([1.0, -1.0]))
    ('confirmed', 'not decidable here')
    """
    if found.low > above:
        return 'confirmed'
    return 'contradicted' if found.high < above else 'not decidable here'


def judged(found: Interval, above: float = 0.0) -> tuple[Verdict, str]:
    """The verdict on an effect, and its reason.

    >>> judged(interval([1.0, 1.1, 0.9]))
    ('confirmed', 'The whole interval lies above 0.')
    """
    said = verdict(found, above)
    side = {
        'confirmed': f'The whole interval lies above {above:g}.',
        'contradicted': f'The whole interval lies below {above:g}.',
        'not decidable here': f'The interval holds {above:g}.',
    }
    return said, side[said]


def within(found: Interval, bound: float, meaning: str) -> tuple[Verdict, str]:
    """The verdict on whether an effect is 0 up to a bound, and its `meaning`, passed through."""
    if -bound < found.low and found.high < bound:
        return 'confirmed', meaning
    if found.low > bound or found.high < -bound:
        return 'contradicted', meaning
    return 'not decidable here', meaning


class Ratio(NamedTuple):
    """A ratio, seed by seed.

    Attributes:
        log: the interval of its logarithm.
        least: whether the ratio may be greater, since some dividends are lower bounds.
        most: whether it may be less, since some divisors are lower bounds.
    """

    log: Interval
    least: bool = False
    most: bool = False

    def show(self) -> str:
        """The geometric mean and its interval.

        Example:
            >>> Ratio(interval([math.log(2), math.log(2)])).show()
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
        """The verdict on whether the ratio is greater than a bound, and its reason."""
        said = verdict(self.log, math.log(bound))
        open_side = {'confirmed': self.most, 'contradicted': self.least}
        if open_side.get(said, self.least or self.most):
            return 'not decidable here', 'Some seeds never reach the line.'
        side = {'confirmed': 'above', 'contradicted': 'below'}.get(said)
        if side is None:
            return said, f'The interval of {name} holds {bound:g}.'
        return said, f'The whole interval of {name} lies {side} {bound:g}.'

    def within(self, factor: float) -> tuple[Verdict, str]:
        """The verdict on whether the ratio is 1 up to a factor, and its reason."""
        if self.least or self.most:
            return 'not decidable here', 'Some seeds never reach the line.'
        return within(self.log, math.log(factor), f'Equal means within a factor of {factor:g}.')


def table(claims: Sequence[Claim]) -> str:
    """The claims as a table in Markdown."""
    lines = ['| claim | source | measured here (95 % interval) | verdict |', '|---|---|---|---|']
    for each in claims:
        lines.append(
            f'| {each.claim} | {each.source} | {each.effect} | **{each.verdict}**: {each.why} |'
        )
    return '\n'.join(lines) + '\n'
