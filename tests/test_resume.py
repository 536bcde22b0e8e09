"""A run that stops goes on with the same bits, or says why it cannot."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from peftjax.interop.folder import trees
from peftjax.interop.folder.read import read_arrays
from peftjax.train.checkpoints import CheckpointsError
from peftjax.train.interrupt import Interrupted
from peftjax.train.scoring import SplitScores
from peftjax.train.window import StepWindow
from tests import tiny_runs
from tests.checkpoint_files import rewrite
from tests.whole_runs import (
    assert_same_bits,
    final_states,
    in_step,
    run_config,
    terminate,
    without_rates,
)

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


def test_a_resumed_run_ends_with_the_same_bits(config, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(StepWindow, 'add', in_step(6, _interrupt))
        with pytest.raises(KeyboardInterrupt):
            run_config(config, tmp_path / 'broken')
    run_config(config, tmp_path / 'broken')
    assert_same_bits(*final_states(config, whole, tmp_path / 'broken'))
    assert without_rates(whole) == without_rates(tmp_path / 'broken')


@pytest.mark.sampled
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
        patch.setattr(StepWindow, 'add', in_step(6, _interrupt))
        with pytest.raises(KeyboardInterrupt):
            run_config(config, tmp_path / 'stopped')
    resumed = run_config(config, tmp_path / 'stopped')
    assert_same_bits(*final_states(config, tmp_path / 'whole', tmp_path / 'stopped'))
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
        patch.setattr(StepWindow, 'add', in_step(5, terminate))
        with pytest.raises(Interrupted, match='step 5 of 8'):
            run_config(config, tmp_path / 'stopped')
    [stopped] = final_states(config, tmp_path / 'stopped')
    assert int(stopped.state.step) == 5
    run_config(config, tmp_path / 'stopped')
    assert_same_bits(*final_states(config, whole, tmp_path / 'stopped'))


@pytest.mark.sampled
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
    assert_same_bits(*final_states(config, whole, tmp_path / 'torn'))
    assert without_rates(whole) == without_rates(tmp_path / 'torn')


def test_no_whole_checkpoint_is_an_error_and_not_a_new_run(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'run')
    for state in (tmp_path / 'run/checkpoints').glob('*/state'):
        shutil.rmtree(state)
    with pytest.raises(CheckpointsError, match=r'is whole \(step 8: '):
        run_config(config, tmp_path / 'run')


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
    monkeypatch.setattr(StepWindow, 'add', in_step(2, terminate))
    with pytest.raises(Interrupted):
        run_config(config, tmp_path / 'short')
    [(state, _)] = final_states(config, tmp_path / 'short')
    best = read_arrays(tmp_path / 'run/adapter').adapter
    for path, leaf in trees.by_path(state.adapter).items():
        np.testing.assert_array_equal(best[path], leaf)


def _interrupt() -> None:
    raise KeyboardInterrupt
