"""Kills a training run at random moments, starts it again, and compares the final bits.

    python -m benchmarks.faults --kills 30

A tiny random BERT on made-up reviews: 60 steps, a checkpoint every second step, an evaluation every
fifth. Each trial starts a new run, kills it with SIGKILL at a random moment, starts it again and
lets it end. The run notes in a file what it is doing. Survived: the run could be started again, and
ended. Identical: adapter, optimiser, key, step and log, except for speeds, have the same bits as
in an undisturbed run.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from peftjax.train.trackers.log import read_metrics
from tests import tiny_runs

ROOT = pathlib.Path(__file__).parents[1]
_LENGTH = {'duration': '60 steps', 'log_every': '2 steps'}
_LENGTH |= {'eval_every': '5 steps', 'save_every': '2 steps'}
# The command, with notes of what it is doing; a save runs in the background of later steps.
_RUN = """
import pathlib, runpy, sys
from peftjax.train import checkpoints, loop
note = pathlib.Path(sys.argv.pop(1))
def noted(name, function):
    def call(*args, **kwargs):
        note.write_text(name)
        try:
            return function(*args, **kwargs)
        finally:
            note.write_text('step')
    return call
loop.Loop._evaluate = noted('evaluation', loop.Loop._evaluate)
checkpoints.Checkpoints.save = noted('save', checkpoints.Checkpoints.save)
runpy.run_module('experiments.main', run_name='__main__', alter_sys=True)
"""


class Trial(NamedTuple):
    """One kill.

    Attributes:
        doing: the note of the run then; '' before the first step.
        at: the newest whole checkpoint then, or None.
    """

    doing: str
    at: int | None
    survived: bool
    identical: bool


def flags(folder: pathlib.Path) -> list[str]:
    """The flags of a tiny run, whose model and data are made in `folder`."""
    config = tiny_runs.film_reviews(folder)
    values = {
        **_LENGTH,
        **{f'model.{name}': config.model[name] for name in ('source',)},
        **{f'data.{name}': config.data[name] for name in ('source', 'lengths')},
        **{f'data.{name}': 8 for name in ('batch_size', 'eval_batch_size')},
        'lora.rank': 4,
    }
    return [
        '--config=configs/lora_sentiment.py',
        *(f'--config.{name}={value}' for name, value in values.items()),
    ]


def trial(
    folder: pathlib.Path, arguments: list[str], seconds: tuple[float, float], seed: int
) -> Trial:
    """Kills a run between two moments, counted from its first log line, and compares its end."""
    workdir, note = folder / f'run_{seed}', folder / f'note_{seed}'
    process = _start(arguments, workdir, note)
    began = time.monotonic()
    while process.poll() is None and not list(workdir.glob('metrics.jsonl')):
        time.sleep(0.01)
        if time.monotonic() - began > 300:
            raise RuntimeError('the run has not begun after five minutes')
    time.sleep(random.Random(seed).uniform(*seconds))
    doing = note.read_text() if note.exists() else ''
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = workdir / 'checkpoints'
    if list(saved.glob('*tmp*')):
        doing = f'{doing}, save unfinished'
    steps = [int(path.name) for path in saved.glob('*') if path.name.isdigit()]
    again = _start(arguments, workdir, note)
    survived = again.wait() == 0 and (workdir / 'result.json').exists()
    identical = survived and end_of(workdir) == end_of(folder / 'whole')
    return Trial(doing, max(steps, default=None), survived, identical)


def undisturbed(folder: pathlib.Path, arguments: list[str]) -> float:
    """Runs to the end in `folder/whole`, and returns the seconds after the first log line."""
    process = _start(arguments, folder / 'whole', folder / 'note')
    while process.poll() is None and not list((folder / 'whole').glob('metrics.jsonl')):
        time.sleep(0.01)
    began = time.monotonic()
    if process.wait() != 0:
        raise RuntimeError('the undisturbed run failed')
    return time.monotonic() - began


def end_of(workdir: pathlib.Path) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """The bits of the last state, by path, and the log without speeds."""
    newest = max(int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit())
    path = (workdir / 'checkpoints' / str(newest) / 'state').resolve()
    state = ocp.StandardCheckpointer().restore(path)
    bits = {name: np.asarray(value).tobytes() for name, value in state.items()}
    return bits, log_of(workdir)


def log_of(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The log without speeds."""
    return [
        {name: value for name, value in row.items() if 'per_second' not in name}
        for row in read_metrics(workdir)
    ]


def start(
    script: str, arguments: list[str], workdir: pathlib.Path, note: pathlib.Path
) -> subprocess.Popen[bytes]:
    """A process that runs the script with a file for notes and the flags."""
    command = [sys.executable, '-c', script, str(note), *arguments, f'--workdir={workdir}']
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=quiet, stderr=quiet)


def _start(
    arguments: list[str], workdir: pathlib.Path, note: pathlib.Path
) -> subprocess.Popen[bytes]:
    note.unlink(missing_ok=True)
    return start(_RUN, arguments, workdir, note)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        arguments = flags(folder)
        length = undisturbed(folder, arguments)
        print(f'undisturbed: {length:.1f} s from the first line of the log to the end')
        trials = []
        for number in range(given.kills):
            trials.append(trial(folder, arguments, (0.0, length), given.seed + number))
            print(json.dumps(trials[-1]._asdict()), flush=True)
    print(dict(collections.Counter(each.doing for each in trials)))
    survived, identical = (sum(column) for column in list(zip(*trials, strict=True))[2:])
    print(f'tried {len(trials)}, survived {survived}, identical {identical}')
    return 0 if identical == len(trials) else 1


if __name__ == '__main__':
    sys.exit(main())
