"""What a row leaves when it is over: its result, and at its end all that a run by itself writes."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.sweep.member import Member
from peftjax.train import run_report
from peftjax.train.checkpoints import Checkpoints
from peftjax.train.files import write_whole
from peftjax.train.fingerprint import fingerprint
from peftjax.train.step import TrainState
from peftjax.train.trackers.log import read_metrics

RESULT = 'result.json'


def steps_taken(folder: Path) -> int | None:
    """The steps of a row that is over; None of one that is not."""
    file = folder / RESULT
    return json.loads(file.read_text(encoding='utf-8'))['steps'] if file.exists() else None


def write_result(
    member: Member, steps: int, together: int, known: Mapping[str, Any], **more: float
) -> None:
    """Closes a row that is over.

    Args:
        member: the row.
        steps: that it took.
        together: rows that its group began with.
        known: its status, and what was found of it. more: what stands behind its cost.
    """
    member.close()
    result = {
        **known,
        'steps': steps,
        'tflop': member.ready.flops * steps / 1e12,
        **more,
        'trainable': member.summary.trainable,
        'base': member.summary.base,
        'together': together,
    }
    write_whole(member.folder / RESULT, json.dumps(result, indent=2) + '\n')


def finish(
    member: Member, state: TrainState, steps: int, together: int, test: Mapping[str, float]
) -> None:
    """Closes a row at its end, with its state, its curve and its scores on the test split."""
    base = fingerprint(member.base)
    with closing(Checkpoints(member.folder, member.resolved, base)) as checkpoints:
        # Where it is in the data no longer matters.
        checkpoints.save(state, {}, member.scores)
    metrics = read_metrics(member.folder)
    run_report.learning_curve(metrics, member.folder / 'learning_curve.png')
    write_result(
        member,
        steps,
        together,
        {'status': 'done', **test, **member.scores},
        steps_per_second=_median(metrics, 'train/steps_per_second'),
        tokens_per_second=_median(metrics, 'train/tokens_per_second'),
        peak_memory_mib=run_report.peak_memory_mib(),
    )


def _median(rows: Sequence[Mapping[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return float(np.median(values)) if values else math.nan
