"""Finds damage in a run's folder, and the checkpoint from which training can repair it."""

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from peftjax.interop.folder.read import read_arrays
from peftjax.train.artifacts import RESULT, read_result
from peftjax.train.checkpoints import Checkpoints
from peftjax.train.member import ADAPTER, LAST, Member
from peftjax.train.trackers.log import read_metrics, whole_lines

_ASIDE = 'result.damaged.json'


def damage(folder: Path) -> str | None:
    """The damage in the folder of a run that is over; None if it is whole, or the run is not over.

    Example:
        >>> folder = getfixture('tmp_path')
        >>> damage(folder), (folder / 'result.json').write_text('{')
        (None, 1)
        >>> damage(folder)
        '...result.json is not JSON: ...'
    """
    try:
        result = read_result(folder)
        if result is None:
            return None
        read_metrics(folder)
        if result['status'] == 'done' and result.get('adapter') == 'written':
            for name in (ADAPTER, LAST):
                read_arrays(folder / name)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def take_back(folder: Path) -> str | None:
    """Makes a run count as not over if its folder is damaged; returns the damage."""
    found = damage(folder)
    if found is not None:
        with contextlib.suppress(FileNotFoundError):  # Another process did it.
            (folder / RESULT).replace(folder / _ASIDE)
    return found


def go_back(
    checkpoints: Checkpoints, members: Sequence[Member], say: Callable[[str], None]
) -> None:
    """Removes the newest checkpoints, if runs that resume from them would lack files or log lines.

    Args:
        checkpoints: of the runs together.
        members: the runs that are not over.
        say: called with a message for each run that is trained again, and with the step.
    """
    newest = checkpoints.latest_step
    if newest is None or jax.process_count() > 1:
        return
    step = None
    for step in (*reversed(checkpoints.steps), None):
        lost = [(m, why) for m in members if step and (why := _missing(m, step))]
        if not lost:
            break
        for member, why in lost if step == newest else ():
            say(f'{member.name} is trained again, as its folder {member.folder} has lost {why}')
    if step != newest:
        say(f'training goes on from step {step or 0}')
        checkpoints.go_back(step)


def _missing(member: Member, step: int) -> str | None:
    """What the folder of a run would lack if the run went on from a step; None if nothing."""
    if member.folder is None:
        return None
    if step >= member.run.steps:
        return RESULT
    lines, damaged = whole_lines(member.folder)
    if not lines or (damaged is not None and lines[-1]['step'] < step):
        return 'lines of its log'
    score = f'validation/{member.run.best.removeprefix("-")}'
    scored = any(math.isfinite(line.get(score, math.nan)) for line in lines if line['step'] <= step)
    if scored and member.unsaved is None:
        try:
            read_arrays(member.folder / ADAPTER)
        except (OSError, ValueError):
            return f'{ADAPTER}/'
    return None
