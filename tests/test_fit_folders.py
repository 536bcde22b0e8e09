"""The folder of a run of `fit`: what goes on from it, what it says, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import peftjax
from peftjax.interop.folder.read import read_arrays
from peftjax.train.run_folder import RunFolder
from peftjax.train.settings import SettingsError
from tests.tiny_fits import TASK, assert_same, run, wrapped


@pytest.fixture(params=['linen', 'nnx'])
def model(request):
    return wrapped(request.param)


def test_nothing_is_written_without_a_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sampled
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bits(model, tmp_path):
    whole = run(model, workdir=tmp_path / 'whole')
    for stop in (1, 5, 8):
        folder = tmp_path / str(stop)

        def stopped(step, metrics, stop=stop):
            assert np.isfinite(float(metrics['loss']))
            if step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(model, workdir=folder, on_step=[stopped])
        again = run(model, workdir=folder)
        assert_same(again.adapter, whole.adapter)
        assert_same(again.best_adapter, whole.best_adapter)
        assert again.best_step == whole.best_step
        for name in ('tflop', 'steps', 'best_step', 'test/loss', 'best/test/right'):
            assert again.result[name] == whole.result[name], name


def test_the_same_call_again_changes_nothing(model, tmp_path):
    first = run(model, workdir=tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.glob('*') if p.is_file()}
    again = run(model, workdir=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.glob('*') if p.is_file()} == files
    assert again.result == first.result
    assert_same(again.best_adapter, first.best_adapter)


def test_an_adapter_that_took_the_place_of_the_best_one_is_not_taken_for_it(model, tmp_path):
    """Stopped behind an evaluation and ahead of its checkpoint, where the steps come out other."""
    values = iter([0.5, 0.9, 0.6, 0.2, 0.1, 0.4])
    kept = {}
    task = dataclasses.replace(TASK, metrics=(), best='own')

    def evaluator(trained, split):
        value = next(values) if split == 'validation' else 0.0
        kept[value] = jax.device_get(trained.adapter)
        return {'own': value}

    def stopped(step, metrics):
        del metrics
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # 0.5 at step 2 is in the checkpoint, 0.9 is not
        run(model, task, evaluators=[evaluator], workdir=tmp_path, on_step=[stopped])
    done = run(model, task, evaluators=[evaluator], workdir=tmp_path)
    assert done.best_step == 4 and done.result['best/validation/own'] == 0.6
    assert_same(done.best_adapter, kept[0.6])
    held = peftjax.restore(tmp_path / 'adapter', model).adapter
    assert_same(held, kept[0.6])


def test_a_folder_that_holds_a_run_is_refused_where_it_must_be_fresh(model, tmp_path):
    run(model, workdir=tmp_path, resume=False)
    with pytest.raises(ValueError, match='holds a run: choose another workdir'):
        run(model, workdir=tmp_path, resume=False)


@pytest.mark.sampled
@pytest.mark.parametrize('change', [{'seed': 1}, {'best': '-loss'}, {'duration': '12 steps'}])
def test_another_run_is_not_gone_on_with(model, tmp_path, change):
    run(model, workdir=tmp_path)
    with pytest.raises(ValueError, match=f'other settings .*{next(iter(change))}'):
        run(model, workdir=tmp_path, **change)
    fewer = {**TASK.splits, 'train': TASK.splits['train'][:32]}
    with pytest.raises(ValueError, match=r'other settings .*rows.train: 40 -> 32'):
        run(model, dataclasses.replace(TASK, splits=fewer), workdir=tmp_path)


class _Failing:
    def __init__(self, when):
        self._when = when

    def write(self, step, values):
        if self._when == 'write' and step >= 5:
            raise OSError('the server is gone')

    def close(self):
        if self._when == 'close':
            raise OSError('the server is gone')


def failing(workdir, settings, resumed_from):
    return _Failing((workdir / '../when').resolve().read_text())


@pytest.mark.sampled
@pytest.mark.parametrize('when', ['write', 'close'])
def test_a_tracker_that_raises_leaves_a_folder_that_goes_on(model, tmp_path, when):
    (tmp_path / 'when').write_text(when)
    with pytest.raises(OSError, match='the server is gone'):
        run(model, workdir=tmp_path / 'run', trackers=['tests.test_fit_folders:failing'])
    again, whole = run(model, workdir=tmp_path / 'run'), run(model)
    assert_same(again.adapter, whole.adapter)


def test_a_run_of_a_model_of_ones_own_says_how_to_read_it(model, tmp_path):
    done = run(model, workdir=tmp_path)
    assert json.loads((tmp_path / 'result.json').read_text()) == dict(done.result)
    assert 'not of a family' in done.result['adapter_peft']
    assert read_arrays(tmp_path / 'adapter').adapter
    with pytest.raises(SettingsError, match='a model of your own; wrap the model again'):
        RunFolder(tmp_path)
    card = (tmp_path / 'README.md').read_text()
    assert 'a model of your own' in card and 'RunFolder' not in card
