"""Where a curve of accuracy over dimension crosses a line."""

import math
from collections.abc import Mapping


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
