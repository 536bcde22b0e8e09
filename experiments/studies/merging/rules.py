"""The rules of the merging study, with the settings among which validation chooses."""

from typing import NamedTuple


class Point(NamedTuple):
    """A rule with its settings.

    Attributes:
        rule: a name of `report.RULES`.
        weight: lambda, the factor of the sum of the changes; with TIES, of the mean of those that
            agree.
        kept: the share of the entries that stay; with RegMean, the factor of the moments between
            two different inputs.
    """

    rule: str
    weight: float | None = None
    kept: float | None = None


WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5)
_TIES = [Point('ties', weight, 0.2) for weight in (0.25, 0.5, 1.0, 1.5)]
_DARE = [Point('dare', weight, kept) for kept in (0.1, 0.5) for weight in (0.3, 0.4, 0.6)]
POINTS = (
    Point('pretrained'),
    Point('average'),
    Point('fisher'),
    *(Point('regmean', None, kept) for kept in (0.1, 0.5, 0.9)),
    *(Point('task arithmetic', weight) for weight in WEIGHTS),
    *_TIES,
    *_DARE,
)
CORE = (
    *(point._replace(rule='core ties') for point in _TIES),
    *(point._replace(rule='core dare') for point in _DARE if point.kept == 0.5),
)
"""Rules in Core Space. They need LoRA: the changes of full fine-tuning have full rank."""
