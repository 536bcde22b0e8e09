"""Durations in words, such as '3 epochs' or '500 steps', and the steps at which things are due."""

import math
import re

_DURATION = re.compile(r'(\d+(?:\.\d+)?)\s*(epoch|step|example)s?')


def steps(duration: str, *, steps_per_epoch: int, batch_size: int) -> int:
    """The number of optimiser steps in a duration, at least one.

    Args:
        duration: a number and one of epochs, steps, examples: '3 epochs', '500 steps'.
        steps_per_epoch: batches in one pass over the data.
        batch_size: examples (or packed rows) in one batch.

    Raises:
        ValueError: the duration does not read as a number above 0 and a unit.

    Example:
        >>> steps('1.5 epochs', steps_per_epoch=100, batch_size=32)
        150
        >>> steps('6400 examples', steps_per_epoch=100, batch_size=32)
        200
    """
    amount, unit = check(duration)
    in_steps = {'epoch': steps_per_epoch, 'step': 1.0, 'example': 1.0 / batch_size}[unit]
    return max(1, math.ceil(amount * in_steps - 1e-9))


def check(duration: str) -> tuple[float, str]:
    """The number and the unit of a duration.

    Raises:
        ValueError: it does not read as a number above 0 and a unit.

    Example:
        >>> check('1.5 epochs')
        (1.5, 'epoch')
    """
    match = _DURATION.fullmatch(duration.strip())
    if match is None or not float(match[1]):
        raise ValueError(
            f'duration {duration!r} does not read as a number above 0 and a unit; '
            "write for example '3 epochs', '500 steps' or '10000 examples'"
        )
    return float(match[1]), match[2]


def is_due(step: int, *, every: int, last: int) -> bool:
    """Whether something that happens every `every` steps is due after `step`, counted from 1.

    It is always due after the last step.

    Example:
        >>> [step for step in range(1, 11) if is_due(step, every=4, last=10)]
        [4, 8, 10]
    """
    return step % every == 0 or step == last
