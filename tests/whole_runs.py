"""What tests of whole runs share."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from peftjax.train.build import build
from peftjax.train.checkpoints import Checkpoints, Restored
from peftjax.train.data_marks import data_marks
from peftjax.train.fingerprint import fingerprint
from peftjax.train.fitting import train
from peftjax.train.placement import Placement
from peftjax.train.settings import read_settings
from peftjax.train.tasks.infer import infer
from peftjax.train.trackers.log import read_metrics
from peftjax.train.window import StepWindow

ROOT = Path(__file__).parents[1]
RATES = tuple(f'train/{name}_per_second' for name in ('steps', 'tokens', 'tflops'))


def run_config(config: Mapping[str, Any], workdir: Path) -> Mapping[str, Any]:
    """What a run of a config gives."""
    return train(read_settings(config), workdir, Console(quiet=True)).result


def final_states(config: Mapping[str, Any], *workdirs: Path) -> list[Restored]:
    """The newest checkpoints of work folders of a config."""
    settings = infer(read_settings(config))
    placement = Placement.of(settings.mesh)
    run = build(settings)
    state, beside = run.start()
    state = placement.state(state, run.model)
    beside = placement.beside(beside, run.model)
    base = fingerprint((run.model.params, beside.frozen))
    opened = [
        Checkpoints(workdir, run.description, base, data=data_marks(run)) for workdir in workdirs
    ]
    return [each.restore(state) for each in opened]


def without_rates(workdir: Path) -> list[dict[str, float]]:
    rows = read_metrics(workdir)
    return [{name: value for name, value in row.items() if name not in RATES} for row in rows]


def run_command(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def bits(leaf) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def in_step(step: int, act: Callable[[], None]) -> Any:
    """A `StepWindow.add` that does something else besides in that step."""
    seen, add = [], StepWindow.add

    def added(self, *args):
        seen.append(args)
        add(self, *args)
        if len(seen) == step:
            act()

    return added


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same_bits(one, other):
    assert one.about == other.about
    for mine, theirs in zip(jax.tree.leaves(one.state), jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(bits(mine), bits(theirs))
