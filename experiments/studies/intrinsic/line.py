"""Where a curve of accuracy over dimension crosses a line."""

import math
from collections.abc import Mapping, Sequence

from experiments.studies.claims import Interval, Verdict, interval, verdict


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


def ratio(over: Sequence[float], under: Sequence[float]) -> Interval:
    """The interval of the logarithm of a ratio, seed by seed.

    Example:
        >>> ratio([200.0, 200.0], [100.0, 100.0]).show(2)
        '0.69 (0.69 to 0.69; n = 2)'
    """
    return interval([math.log(a / b) for a, b in zip(over, under, strict=True)])


def times(found: Interval) -> str:
    """A ratio as text, from the interval of its logarithm.

    Example:
        >>> times(ratio([200.0, 200.0], [100.0, 100.0]))
        '2.00 (2.00 to 2.00; n = 2)'
    """
    mean, low, high = (math.exp(each) for each in found[:3])
    return f'{mean:.2f} ({low:.2f} to {high:.2f}; n = {found.seeds})'


def above(found: Interval, bound: float, name: str = 'the ratio') -> tuple[Verdict, str]:
    """Whether a ratio, given by the interval of its logarithm, is greater than a bound."""
    said = verdict(found, math.log(bound))
    side = {'confirmed': 'above', 'contradicted': 'below'}.get(said)
    if side is None:
        return said, f'The interval of {name} holds {bound:g}.'
    return said, f'The whole interval of {name} lies {side} {bound:g}.'


def within(found: Interval, bound: float, meaning: str) -> tuple[Verdict, str]:
    """Whether an effect is 0, up to a bound that says what counts as 0."""
    if -bound < found.low and found.high < bound:
        return 'confirmed', meaning
    if found.low > bound or found.high < -bound:
        return 'contradicted', meaning
    return 'not decidable here', meaning
