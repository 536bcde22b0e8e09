"""trackio, whose dashboard runs here: trackio show --project peftjax"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjax.train.optional import library
from peftjax.train.trackers.memory import Memory


def trackio(workdir: Path, settings: Mapping[str, Any], resumed_from: int) -> '_Trackio':
    """Writes to trackio's own folder, which TRACKIO_DIR names; TRACKIO_PROJECT names the project.

    The run's name is that of the work folder and an id, since folders of one name may be different
    runs.
    """
    return _Trackio(workdir, settings, resumed_from)


class _Trackio:
    def __init__(self, workdir: Path, settings: Mapping[str, Any], resumed_from: int):
        self._module = library('trackio', 'trackio', "the tracker 'trackio'")
        self._memory = Memory(workdir, 'trackio', resumed_from)
        self._run = self._module.init(
            project=os.environ.get('TRACKIO_PROJECT', 'peftjax'),
            name=f'{workdir.name}-{self._memory.id}',
            config=dict(settings),
            resume='allow',
            # Only the numbers of the run, and not those of the machine.
            auto_log_gpu=False,
            auto_log_cpu=False,
            embed=False,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        new = self._memory.unsent(step, values)
        if new:
            self._run.log(new, step=step)
            self._memory.sent(step, new)

    def close(self) -> None:
        self._run.finish()
