"""The score that compares the runs of a sweep: any number of the validation split."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from peftjax.train.metrics.registry import better


class Score(NamedTuple):
    """A number that runs log, and whether more or less is better.

    Attributes:
        name: the name in `metrics.jsonl`, such as 'validation/f1'.
        smaller: whether the least value is the best.
    """

    name: str
    smaller: bool

    def of(self, values: Mapping[str, Any]) -> float | None:
        """The score among a run's values; None if it is missing or not finite."""
        value = values.get(self.name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)

    def order(self, values: Mapping[str, Any]) -> tuple[bool, float]:
        """A key for `sorted`: the best first, and runs without a finite number last.

        Example:
            >>> runs = [{'validation/loss': 2.0}, {}, {'validation/loss': 1.0}]
            >>> sorted(runs, key=read_score('loss').order)
            [{'validation/loss': 1.0}, {'validation/loss': 2.0}, {}]
        """
        value = self.of(values)
        return value is None, 0.0 if value is None else value if self.smaller else -value


def smaller_is_better(name: str) -> bool:
    """Whether the least value of a score is the best, by the last part of its name.

    Example:
        >>> smaller_is_better('validation/loss'), smaller_is_better('test/f1')
        (True, False)
    """
    return better(name.rpartition('/')[2]).startswith('-')


def read_score(text: str) -> Score:
    """A score by its name, with or without the split; a minus sign says that the least is the best.

    Raises:
        ValueError: the score is of the test split or of training, or it has no name.

    Example:
        >>> read_score('f1'), read_score('-validation/wrong')
        (Score(name='validation/f1', smaller=False), Score(name='validation/wrong', smaller=True))
    """
    name = text.removeprefix('-')
    split, _, last = name.rpartition('/')
    if not last or split.startswith(('test', 'train')):
        raise ValueError(
            f'--score={text}: runs are compared on the validation split; '
            'write for example validation/accuracy, validation/f1 or -validation/loss'
        )
    whole = name if split.startswith('validation') else f'validation/{name}'
    return Score(whole, text.startswith('-') or smaller_is_better(whole))
