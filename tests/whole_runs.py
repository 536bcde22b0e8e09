"""What tests of whole runs share."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from peftjax.train import build
from peftjax.train import loop as train
from peftjax.train.checkpoints import Checkpoints
from peftjax.train.config import Config
from peftjax.train.fingerprint import fingerprint
from peftjax.train.trackers.log import read_metrics

ROOT = Path(__file__).parents[1]
RATES = tuple(f'train/{name}_per_second' for name in ('steps', 'tokens', 'tflops'))


def run_config(config: Config, workdir: Path) -> dict[str, float]:
    return train.train(config, workdir, Console(quiet=True))


def final_states(config: Config, *workdirs: Path):
    run = build.build(config)
    like, frozen = build.start(config, run)
    like = run.placement.state(like, run.model)
    frozen = run.placement.frozen(frozen, run.model)
    resolved, base = json.loads(config.to_json()), fingerprint((run.model.params, frozen))
    return [Checkpoints(workdir, resolved, base).restore(like) for workdir in workdirs]


def without_rates(workdir: Path) -> list[dict[str, float]]:
    rows = read_metrics(workdir)
    return [{name: value for name, value in row.items() if name not in RATES} for row in rows]


def run_command(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def bits(leaf) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)
