"""Kills a sweep at random moments, starts it again, and compares the results of its runs.

    python -m benchmarks.sweep_faults --kills 10
    python -m benchmarks.sweep_faults --kills 10 --search

Six runs of a tiny random BERT on made-up reviews, in groups of two: 24 steps each, with a
checkpoint of the group every fourth step. With --search they are drawn two at a time, and the worse
of two stops after eight steps. Each trial starts a sweep in a new folder. It kills the sweep with
SIGKILL at a random moment after its logs have a random number of lines, starts two workers on the
same folder and lets them end. Lost: runs without a result. Twice: runs that were finished at the
kill and whose result was written again, or that both workers trained. Identical: every run has the
bits and the log of an undisturbed sweep.
"""

import argparse
import json
import pathlib
import random
import signal
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from benchmarks.faults import flags, log_of, start
from peftjax.interop.folder.read import read_arrays

_ROWS = ('000', '001', '002', '003', '004', '005')
_CONFIG = """
from configs.lora_sentiment import get_config

def sweep_few(add):
    for rank in (1, 2, 4):
        for seed in (0, 1):
            add(seed=seed, **{'lora.rank': rank})

def search_few(trial):
    return {
        'lr': trial.suggest_float('lr', 1e-4, 1e-2, log=True),
        'lora.rank': trial.suggest_categorical('lora.rank', (1, 2, 4)),
    }
"""
# The command, which also writes a line into a file for each run that it trains from the first step.
_RUN = """
import os, pathlib, runpy, sys
from peftjax.sweep import work
note = pathlib.Path(sys.argv.pop(1))
train = work.train_group
def noted(group, *others):
    with note.open('a') as file:
        file.write(f'{os.getpid()} {group.name}\\\\n')
    return train(group, *others)
work.train_group = noted
runpy.run_module('experiments.sweep', run_name='__main__', alter_sys=True)
"""


class Trial(NamedTuple):
    """One kill. lines: of the logs of all runs then. over: runs that had a result then."""

    lines: int
    over: int
    lost: int
    twice: int
    identical: bool


def trial(folder: pathlib.Path, arguments: list[str], number: int, seed: int) -> Trial:
    """Kills a sweep between the first line and the last one that `folder/whole` has."""
    drawn = random.Random(seed + number)
    wanted = drawn.randint(1, _lines(folder / 'whole') - 1)
    workdir, note = folder / f'sweep_{number}', folder / f'note_{number}'
    process = start(_RUN, arguments, workdir, note)
    while process.poll() is None and _lines(workdir) < wanted:
        time.sleep(0.02)
    time.sleep(drawn.uniform(0.0, 2.0))
    lines = _lines(workdir)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {row: _result(workdir, row).stat().st_mtime_ns for row in _over(workdir)}
    note.unlink(missing_ok=True)
    workers = [start(_RUN, arguments, workdir, note) for _ in range(2)]
    ended = [worker.wait() for worker in workers]
    if any(ended):
        raise RuntimeError(f'workers ended with {ended}')
    again = sum(_result(workdir, row).stat().st_mtime_ns != when for row, when in before.items())
    trained = [line.split()[1] for line in note.read_text().splitlines()] if note.exists() else []
    twice = again + len(trained) - len(set(trained))
    same = all(
        _end(workdir / 'runs' / row) == _end(folder / 'whole/runs' / row) for row in _over(workdir)
    )
    return Trial(lines, len(before), len(_ROWS) - len(_over(workdir)), twice, same)


def adapter_of(row: pathlib.Path) -> dict[str, bytes]:
    """The bits of the last adapter, by path."""
    arrays = read_arrays(row / 'adapter_last').adapter
    return {path: np.asarray(array).tobytes() for path, array in arrays.items()}


def _end(row: pathlib.Path) -> tuple[object, ...]:
    """The bits and the log of a run; only the log if it was stopped early."""
    status = json.loads((row / 'result.json').read_text())['status']
    return status, adapter_of(row) if status == 'done' else None, log_of(row)


def _over(workdir: pathlib.Path) -> list[str]:
    return [row for row in _ROWS if _result(workdir, row).exists()]


def _result(workdir: pathlib.Path, row: str) -> pathlib.Path:
    return workdir / 'runs' / row / 'result.json'


def _lines(workdir: pathlib.Path) -> int:
    return sum(path.read_text().count('\n') for path in workdir.glob('runs/*/metrics.jsonl'))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--search', action='store_true', help='draw the runs, and halve them')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config = folder / 'few.py'
        config.write_text(_CONFIG)
        arguments = [f'--config={config}', *flags(folder)[1:], '--together=2']
        searched = ['--search=few', '--trials=6', '--wave=2', '--halving=2']
        arguments += searched if given.search else ['--sweep=few']
        arguments += [
            '--config.duration=24 steps',
            '--config.eval_every=8 steps',
            '--config.save_every=4 steps',
        ]
        if start(_RUN, arguments, folder / 'whole', folder / 'note').wait() != 0:
            raise RuntimeError('the undisturbed sweep failed')
        print(f'undisturbed: {_lines(folder / "whole")} lines', flush=True)
        trials = []
        for number in range(given.kills):
            trials.append(trial(folder, arguments, number, given.seed))
            print(json.dumps(trials[-1]._asdict()), flush=True)
    lost, twice = (sum(getattr(each, name) for each in trials) for name in ('lost', 'twice'))
    identical = sum(each.identical for each in trials)
    print(f'tried {len(trials)}, rows lost {lost}, run twice {twice}, identical {identical}')
    return 0 if identical == len(trials) and not lost + twice else 1


if __name__ == '__main__':
    sys.exit(main())
