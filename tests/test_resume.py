"""A run that stops goes on with the same bits: whatever stopped it, and wherever it goes on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import faults
from configs import lora_sentiment
from peftjax.interop.folder import trees
from peftjax.interop.folder.read import read_arrays
from peftjax.train.checkpoints import CheckpointsError
from peftjax.train.interrupt import Interrupted
from peftjax.train.scoring import SplitScores
from peftjax.train.trackers.log import read_metrics
from peftjax.train.window import StepWindow
from tests import tiny_runs
from tests.checkpoint_files import rewrite
from tests.whole_runs import ROOT, bits, final_states, run_command, run_config, without_rates

WORDS = 'bert.embeddings.word_embeddings.weight'


@pytest.fixture(scope='module')
def reviews(tmp_path_factory) -> Any:
    return tiny_runs.film_reviews(tmp_path_factory.mktemp('reviews'))


@pytest.fixture
def config(reviews) -> Any:
    return reviews.copy_and_resolve_references()


@pytest.fixture(scope='module')
def whole(reviews, tmp_path_factory) -> Path:
    """The work folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp('whole') / 'run'
    run_config(reviews.copy_and_resolve_references(), folder)
    return folder


@pytest.fixture
def steady(reviews) -> Any:
    return _without_dropout(reviews)


@pytest.fixture(scope='module')
def whole_steady(reviews, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('whole_steady') / 'run'
    run_config(_without_dropout(reviews), folder)
    return folder


def test_a_resumed_run_ends_with_the_same_bits(config, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(StepWindow, 'add', _in_step(6, _interrupt))
        with pytest.raises(KeyboardInterrupt):
            run_config(config, tmp_path / 'broken')
    run_config(config, tmp_path / 'broken')
    _assert_same_bits(*final_states(config, whole, tmp_path / 'broken'))
    assert without_rates(whole) == without_rates(tmp_path / 'broken')


@pytest.mark.parametrize(
    ('method', 'arguments'),
    [
        # What is frozen depends on the fresh adapter, and the checkpoint holds the trained one.
        ('lora', {'rank': 4, 'init': 'pissa'}),
        ('lora', {'rank': 4, 'init': 'olora'}),
        ('loftq', {'rank': 4}),
        # Every leaf has moved into the adapter.
        ('full', {}),
    ],
)
def test_a_resumed_run_has_the_frozen_part_of_its_start(
    config, tmp_path, monkeypatch, method, arguments
):
    config.methods, config.lr = (method,), 1e-2
    if arguments:
        arguments = {**arguments, 'targets': config.lora.targets}
    if method in config:
        del config[method]
    config[method] = ConfigDict(arguments)
    whole = run_config(config, tmp_path / 'whole')
    with monkeypatch.context() as patch:
        patch.setattr(StepWindow, 'add', _in_step(6, _interrupt))
        with pytest.raises(KeyboardInterrupt):
            run_config(config, tmp_path / 'stopped')
    resumed = run_config(config, tmp_path / 'stopped')
    _assert_same_bits(*final_states(config, tmp_path / 'whole', tmp_path / 'stopped'))
    assert without_rates(tmp_path / 'whole') == without_rates(tmp_path / 'stopped')
    assert resumed['test/loss'] == whole['test/loss']


def test_a_work_folder_of_another_config_is_refused(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'run')
    config.lr = 0.5
    with pytest.raises(ValueError, match=r'other settings \(lr: 0.001 -> 0.5\)'):
        run_config(config, tmp_path / 'run')


def test_a_work_folder_of_another_base_is_refused(config, tmp_path):
    config.duration = '2 steps'
    config.model.source = str(shutil.copytree(config.model.source, tmp_path / 'bert'))
    run_config(config, tmp_path / 'run')
    rewrite(tmp_path / 'bert', lambda weights: weights[WORDS].__iadd__(1e-3))
    with pytest.raises(ValueError, match=r'on another base: the values of .*bert have the finger'):
        run_config(config, tmp_path / 'run')


def test_sigterm_saves_and_the_run_goes_on_with_the_same_bits(config, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(StepWindow, 'add', _in_step(5, _terminate))
        with pytest.raises(Interrupted, match='step 5 of 8'):
            run_config(config, tmp_path / 'stopped')
    [stopped] = final_states(config, tmp_path / 'stopped')
    assert int(stopped.state.step) == 5
    run_config(config, tmp_path / 'stopped')
    _assert_same_bits(*final_states(config, whole, tmp_path / 'stopped'))


@pytest.mark.parametrize('how', ['cut', 'changed', 'lost'])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(config, whole, tmp_path, how):
    shutil.copytree(whole, tmp_path / 'torn')
    files = sorted(
        (path for path in (tmp_path / 'torn/checkpoints/8/state').rglob('*') if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    largest = files[-1]
    if how == 'lost':
        largest.unlink()
    else:
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content[: len(content) // 2] if how == 'cut' else content)
    run_config(config, tmp_path / 'torn')
    assert (tmp_path / 'torn/damaged/8').is_dir()
    _assert_same_bits(*final_states(config, whole, tmp_path / 'torn'))
    assert without_rates(whole) == without_rates(tmp_path / 'torn')


def test_no_whole_checkpoint_is_an_error_and_not_a_new_run(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'run')
    for state in (tmp_path / 'run/checkpoints').glob('*/state'):
        shutil.rmtree(state)
    with pytest.raises(CheckpointsError, match=r'is whole \(step 8: '):
        run_config(config, tmp_path / 'run')


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
    _assert_same_bits(*final_states(steady, whole_steady, tmp_path / 'full'))


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


def test_the_best_adapter_is_kept_whatever_comes_later(config, tmp_path, monkeypatch):
    config.eval_every = config.save_every = '1 step'
    losses, evaluated = iter([0.5, 0.1, *(0.2 + i for i in range(6))]), SplitScores.scores
    kept = []

    def scores(self, place):
        found = {**evaluated(self, place), 'loss': next(losses, 9.0)}
        kept.append(found['loss'])
        return found

    monkeypatch.setattr(SplitScores, 'scores', scores)
    result = run_config(config, tmp_path / 'run')
    monkeypatch.undo()
    assert result['best_step'] == 2 and result['best/validation/loss'] == 0.1
    steps = sorted(int(path.name) for path in (tmp_path / 'run/checkpoints').iterdir())
    assert steps == [7, 8]
    # The second step of a run of the same schedule, stopped there.
    monkeypatch.setattr(StepWindow, 'add', _in_step(2, _terminate))
    with pytest.raises(Interrupted):
        run_config(config, tmp_path / 'short')
    [(state, _)] = final_states(config, tmp_path / 'short')
    best = read_arrays(tmp_path / 'run/adapter').adapter
    for path, leaf in trees.by_path(state.adapter).items():
        np.testing.assert_array_equal(best[path], leaf)


def test_a_run_goes_on_on_another_mesh(steady, whole_steady, tmp_path, monkeypatch):
    monkeypatch.setattr(StepWindow, 'add', _in_step(5, _terminate))
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


def _in_step(step: int, act: Callable[[], None]) -> Any:
    """A `StepWindow.add` that does something else besides in that step."""
    seen, add = [], StepWindow.add

    def added(self, *args):
        seen.append(args)
        add(self, *args)
        if len(seen) == step:
            act()

    return added


def _interrupt() -> None:
    raise KeyboardInterrupt


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _assert_same_bits(one, other):
    assert one.about == other.about
    for mine, theirs in zip(jax.tree.leaves(one.state), jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(bits(mine), bits(theirs))
