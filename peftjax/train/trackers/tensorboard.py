"""TensorBoard event files in the work folder: tensorboard --logdir runs."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from peftjax.train.trackers.memory import Memory


def tensorboard(workdir: Path, settings: Mapping[str, Any], resumed_from: int) -> '_TensorBoard':
    """Writes to `<workdir>/tensorboard`. A resumed run hides the numbers of later steps."""
    del settings
    return _TensorBoard(workdir, resumed_from)


class _TensorBoard:
    def __init__(self, workdir: Path, resumed_from: int):
        self._memory = Memory(workdir, 'tensorboard', resumed_from, forgets=True)
        self._board = SummaryWriter(
            str(workdir / 'tensorboard'),
            purge_step=resumed_from + 1,
            # The library names files by the second, so a quick restart would overwrite one.
            filename_suffix=f'.{time.time_ns()}',
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        new = self._memory.unsent(step, values)
        for name, value in new.items():
            self._board.add_scalar(name, value, step)
        self._memory.sent(step, new)

    def close(self) -> None:
        self._board.close()
