"""Decides which runs of a sweep stop before their end, by their scores so far."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from peftjax.sweep.score import Score, read_score


class Rung(NamedTuple):
    """Runs of a group that were scored after the same step, and continue unless they are stopped.

    Attributes:
        step: the step. number: how many times the group was scored, this time included.
        of: the number of runs at the start of the group.
        scores: of each run, by its name: `{'validation/loss': 0.6, 'validation/accuracy': 0.7}`.
    """

    step: int
    number: int
    of: int
    scores: Mapping[str, Mapping[str, float]]


Prune = Callable[[Rung], Collection[str]]
"""The names of the runs that stop at a rung.

A pruner that also uses runs of other groups holds the folder of the sweep, which all groups share;
it is sent to other machines by pickle.
"""


def nobody(rung: Rung) -> Collection[str]:
    """All runs train to their end."""
    del rung
    return ()


def either(prunes: Sequence[Prune]) -> Prune:
    """Stops the runs that at least one of the pruners stops."""
    return lambda rung: {name for prune in prunes for name in prune(rung)}


class Halving(NamedTuple):
    """Successive halving of a group: after scores number 1, η, η², ... a part of its runs
    continues.

    With rung `k` at score number η^k, the best `⌊n / η^(k+1)⌋` (at least one) of the group's n runs
    continue. Runs that diverged or ended before count as gone. A group trains in step, so each rung
    compares all of its runs: the original, synchronous algorithm, where each group is a bracket.

    Source: Jamieson and Talwalkar (2016), https://arxiv.org/abs/1502.07943, algorithm 1. There the
    first rung is a share of the budget; here it is the first evaluation.

    Attributes:
        eta: η, at least 2. score: as `peftjax.sweep.score.read_score` reads it.

    Example:
        >>> scores = {name: {'validation/f1': 0.5 + 0.1 * i} for i, name in enumerate('abcd')}
        >>> sorted(Halving(2, 'f1')(Rung(10, 1, 4, scores)))
        ['a', 'b']
    """

    eta: int
    score: str

    def __call__(self, rung: Rung) -> Collection[str]:
        """The names of the runs that stop.

        Raises:
            ValueError: no run of the rung has the score; the message says which there are.
        """
        level = level_of(rung.number, self.eta)
        if level is None:
            return ()
        keep = rung.of // self.eta ** (level + 1)
        return best_first(rung.scores, read_score(self.score))[max(1, keep) :]


def level_of(number: int, eta: int) -> int | None:
    """k if score number `number` is η^k; None if it is not a rung.

    Example:
        >>> [level_of(number, 3) for number in (1, 2, 3, 6, 9)]
        [0, None, 1, None, 2]
    """
    level = 0
    while eta**level < number:
        level += 1
    return level if eta**level == number else None


def best_first(scores: Mapping[str, Mapping[str, float]], score: Score) -> list[str]:
    """Names of runs by their score; NaN and infinity come last, and names break ties.

    Raises:
        ValueError: no run logs the score; the message says which scores there are.
    """
    if not any(score.name in values for values in scores.values()):
        known = ', '.join(sorted({name for values in scores.values() for name in values}))
        raise ValueError(f'no run logs {score.name}: give --score one of {known}')
    return sorted(scores, key=lambda name: (*score.order(scores[name]), name))
