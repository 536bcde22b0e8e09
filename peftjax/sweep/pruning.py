"""Which rows of a sweep stop before their end, by what they reached so far."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

SCORES = {'validation/accuracy': 1, 'validation/loss': -1}
"""What rows can be compared by, and the sign that makes the greatest the best."""


class Rung(NamedTuple):
    """Rows of a group that were scored after the same step, and go on unless they are stopped.

    Attributes:
        step: the step. number: how many times the group was scored, this time included.
        of: rows that the group began with.
        scores: of each row, by its name: `{'validation/loss': 0.6, 'validation/accuracy': 0.7}`.
    """

    step: int
    number: int
    of: int
    scores: Mapping[str, Mapping[str, float]]


Prune = Callable[[Rung], Collection[str]]
"""The names of the rows that stop at a rung."""


def nobody(rung: Rung) -> Collection[str]:
    """All rows run to their end."""
    del rung
    return ()


def either(prunes: Sequence[Prune]) -> Prune:
    """Stops whom any of them stops."""
    return lambda rung: {name for prune in prunes for name in prune(rung)}


class Halving(NamedTuple):
    """Successive halving of a group: after scores number 1, η, η², ... a part of its rows goes on.

    With rung `k` at score number η^k, the best `⌊n / η^(k+1)⌋` of the group's n rows go on, and one
    at least. Whoever diverged or ended before counts as gone. A group trains in step, so each rung
    compares all of its rows: the original, synchronous algorithm, where each group is a bracket.

    Source: Jamieson and Talwalkar (2016), https://arxiv.org/abs/1502.07943, algorithm 1. There the
    first rung is a share of the budget; here it is the first evaluation.

    Attributes:
        eta: η, at least 2. score: one of `SCORES`.

    Example:
        >>> scores = {name: {'validation/accuracy': 0.5 + 0.1 * i} for i, name in enumerate('abcd')}
        >>> sorted(Halving(2, 'validation/accuracy')(Rung(10, 1, 4, scores)))
        ['a', 'b']
    """

    eta: int
    score: str

    def __call__(self, rung: Rung) -> Collection[str]:
        power, keep = 1, rung.of // self.eta
        while power < rung.number:
            power, keep = power * self.eta, keep // self.eta
        if power != rung.number:
            return ()
        best = sorted(
            rung.scores,
            key=lambda name: (-SCORES[self.score] * rung.scores[name][self.score], name),
        )
        return best[max(1, keep) :]
