"""A run that stops in one process, or on one mesh, and goes on in another."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import faults
from configs import lora_sentiment
from peftjax.train.interrupt import Interrupted
from peftjax.train.trackers.log import read_metrics
from peftjax.train.window import StepWindow
from tests import tiny_runs
from tests.whole_runs import (
    ROOT,
    assert_same_bits,
    final_states,
    in_step,
    run_command,
    run_config,
    terminate,
)


@pytest.fixture(scope='module')
def reviews(tmp_path_factory) -> Any:
    return tiny_runs.film_reviews(tmp_path_factory.mktemp('reviews'))


@pytest.fixture
def steady(reviews) -> Any:
    return _without_dropout(reviews)


@pytest.fixture(scope='module')
def whole_steady(reviews, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('whole_steady') / 'run'
    run_config(_without_dropout(reviews), folder)
    return folder


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_the_last_whole_checkpoint_goes_on(
    steady, whole_steady, tmp_path
):
    code = (
        'import resource, signal, sys, runpy; from peftjax.train import checkpoints\n'
        'save = checkpoints.Checkpoints.save\n'
        'def full(self, state, *rest):\n'
        '    if int(state.step) == 4:\n'
        '        self.wait()\n'
        '        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        '        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n'
        '    save(self, state, *rest)\n'
        'checkpoints.Checkpoints.save = full\n'
        'runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)\n'
    )
    done = run_command(
        [sys.executable, '-c', code, *_flags(steady), '--workdir', tmp_path / 'full']
    )
    assert done.returncode == 1
    # Not the last line for certain: threads of the storage library may complain while Python ends.
    assert 'stopped: a checkpoint could not be written to ' in done.stderr
    assert 'The newest whole one is of step 2' in done.stderr
    run_config(steady, tmp_path / 'full')
    assert_same_bits(*final_states(steady, whole_steady, tmp_path / 'full'))


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> tuple[Path, list[str], float]:
    """The folder of a run left alone, its flags, and its seconds from the first step on."""
    folder = tmp_path_factory.mktemp('kills')
    arguments = faults.flags(folder)
    return folder, arguments, faults.undisturbed(folder, arguments)


# Thirty of them: python -m benchmarks.faults --kills 30.
@pytest.mark.parametrize('seed', [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_killed_run_ends_with_the_same_bits(undisturbed, seed):
    folder, arguments, length = undisturbed
    trial = faults.trial(folder, arguments, (0.0, length), seed)
    assert trial.survived and trial.identical, trial


def test_a_run_goes_on_on_another_mesh(steady, whole_steady, tmp_path, monkeypatch):
    monkeypatch.setattr(StepWindow, 'add', in_step(5, terminate))
    with pytest.raises(Interrupted):
        run_config(steady, tmp_path)
    monkeypatch.undo()
    steady.mesh.fsdp, steady.mesh.tensor = 4, 2
    run_config(steady, tmp_path)
    (alone, _), (moved, _) = final_states(steady, whole_steady, tmp_path)
    for one, other in zip(
        jax.tree.leaves(alone.adapter), jax.tree.leaves(moved.adapter), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    losses = [
        [row['validation/loss'] for row in read_metrics(folder) if 'validation/loss' in row]
        for folder in (whole_steady, tmp_path)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_train_and_resume_as_one_does(steady, whole_steady, tmp_path):
    alone = json.loads((whole_steady / 'result.json').read_text())
    folder = tmp_path / 'two'
    for _ in range(2):
        outputs = _two_processes([*_flags(steady), f'--workdir={folder}'])
        assert ['accuracy, test' in each for each in outputs] == [True, False]
        result = json.loads((folder / 'result.json').read_text())
        assert result['test/loss'] == pytest.approx(alone['test/loss'], rel=1e-5)
        np.testing.assert_allclose(_losses(whole_steady), _losses(folder), rtol=1e-5)
        shutil.rmtree(folder / 'checkpoints/8')  # the second start goes on from step 6


def _two_processes(arguments: Sequence[str]) -> list[str]:
    """What two processes of two devices each print, who share a mesh."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    # Of a flag that is given twice, the second counts.
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2'
    environment = {**os.environ, 'XLA_FLAGS': flags}
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, '-m', 'experiments.main', *arguments),
                *('--config.mesh.data=2', '--config.mesh.fsdp=2'),
                *(f'--coordinator={address}', '--processes=2', f'--process={number}'),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [stdout for stdout, _ in outputs]


def _losses(workdir: Path) -> list[float]:
    rows = read_metrics(workdir)
    return [v for row in rows for k, v in row.items() if k in ('train/loss', 'validation/loss')]


def _without_dropout(reviews: Any) -> Any:
    """A copy that has no dropout, as the config file has none; meshes draw masks of their own."""
    config = reviews.copy_and_resolve_references()
    del config.lora['dropout']
    return config


def _flags(config: Any) -> list[str]:
    """The fields of a tiny run in which it differs from its config file."""
    file: Any = lora_sentiment.get_config()
    return [
        '--config=configs/lora_sentiment.py',
        *(
            f'--config.{name}={config[name]}'
            for name in ('duration', 'log_every', 'eval_every', 'save_every')
        ),
        *(
            f'--config.{part}.{name}={value}'
            for part in ('model', 'data', 'lora')
            for name, value in config[part].items()
            if value != file[part][name]
        ),
    ]
