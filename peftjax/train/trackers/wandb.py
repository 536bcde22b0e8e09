"""Weights & Biases, offline unless the environment says otherwise."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjax.train.optional import library
from peftjax.train.trackers.memory import Memory


def wandb(workdir: Path, settings: Mapping[str, Any], resumed_from: int) -> '_WandB':
    """Writes to `<workdir>/wandb`; `wandb sync` sends it to a server.

    WANDB_MODE=online sends the numbers at once, WANDB_PROJECT names the project. A resumed run
    keeps its id: `wandb sync --append` joins the parts.
    """
    return _WandB(workdir, settings, resumed_from)


class _WandB:
    def __init__(self, workdir: Path, settings: Mapping[str, Any], resumed_from: int):
        module = library('wandb', 'wandb', "the tracker 'wandb'")
        self._memory = Memory(workdir, 'wandb', resumed_from)
        self._run = module.init(
            project=os.environ.get('WANDB_PROJECT', 'peftjax'),
            mode=os.environ.get('WANDB_MODE', 'offline'),
            name=workdir.name,
            id=self._memory.id,
            resume='allow' if self._memory.resumed else None,
            dir=str(workdir),
            config=dict(settings),
            # The lines that the run prints are for the terminal, and are not uploaded.
            settings=module.Settings(console='off', silent=True),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        new = self._memory.unsent(step, values)
        if new:
            self._run.log(new, step=step)
            self._memory.sent(step, new)

    def close(self) -> None:
        self._run.finish()
