"""A work folder belongs to one run, whose data stay the same."""

import json
import shutil
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import optax
import pytest

import peftjax
from peftjax.train.build import build
from peftjax.train.data_marks import changes, data_marks
from peftjax.train.owner import OwnedError, owned
from peftjax.train.run import Run
from peftjax.train.settings import read_settings
from peftjax.train.tasks.infer import infer
from tests import tiny_runs


def test_a_folder_in_use_is_refused_with_its_owner(tmp_path):
    code = (
        'import sys, time; from pathlib import Path; from peftjax.train.owner import owned\n'
        'with owned(Path(sys.argv[1])): print("held", flush=True); time.sleep(60)\n'
    )
    with subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path / 'run')], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b'held\n'
        told = f'in use by process {other.pid} on .* since 20'
        with pytest.raises(OwnedError, match=told), owned(tmp_path / 'run'):
            pass
        other.send_signal(signal.SIGKILL)
    with owned(tmp_path / 'run'), pytest.raises(OwnedError), owned(tmp_path / 'run'):
        pass
    # Whatever the file of the owner holds.
    (tmp_path / 'run/.owner.json').write_text('[')
    with owned(tmp_path / 'run'):
        (tmp_path / 'run/.owner.json').write_text('[3]')
        with pytest.raises(OwnedError, match='in use by another process'), owned(tmp_path / 'run'):
            pass


def _totals(forward, batch):
    logits = forward({'x': batch['x']})
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
    return {'loss': losses.sum(), 'weights': np.float32(len(losses))}


def _fit(rows, folder, **options: Any):
    mlp = peftjax.testing.tiny_mlp()
    return peftjax.train.fit(
        mlp,
        peftjax.lora(rank=2, targets=r'hidden'),
        peftjax.train.Task(splits={'train': rows}, totals=_totals, batch_size=8),
        optimizer=optax.adam(1e-2),
        workdir=folder,
        save_every='2 steps',
        **{'duration': '4 steps', **options},
    )


@pytest.fixture
def rows():
    return [{'x': np.full(4, i % 2, np.float32), 'y': np.int32(i % 2)} for i in range(16)]


def _stop_at(step):
    def on_step(number, metrics):
        del metrics
        if number == step:
            raise KeyboardInterrupt

    return on_step


def test_rows_that_changed_are_refused_unless_allowed(rows, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _fit(rows, tmp_path / 'run', on_step=[_stop_at(3)])
    logged = (tmp_path / 'run/metrics.jsonl').read_bytes()
    others = [{**row, 'y': np.int32(1) - row['y']} for row in rows]
    with pytest.raises(ValueError, match=r'other data \(the rows of train have changed\)'):
        _fit(others, tmp_path / 'run')
    assert (tmp_path / 'run/metrics.jsonl').read_bytes() == logged  # nothing was touched
    assert _fit(others, tmp_path / 'run', allow_changed_data=True).result['steps'] == 4
    # From the next checkpoint on, those rows are the run's own.
    assert _fit(others, tmp_path / 'run').result['steps'] == 4


def test_a_fit_inside_a_fit_of_the_same_folder_is_refused(rows, tmp_path):
    def again(number, metrics):
        del metrics
        if number == 2:
            _fit(rows, tmp_path / 'run')

    with pytest.raises(OwnedError, match='in use by process'):
        _fit(rows, tmp_path / 'run', on_step=[again])
    assert _fit(rows, tmp_path / 'run').result['steps'] == 4


def test_results_of_other_settings_are_not_written_over(rows, tmp_path):
    _fit(rows, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run/checkpoints')
    with pytest.raises(ValueError, match=r'result\.json of a run with other settings \(duration'):
        _fit(rows, tmp_path / 'run', duration='6 steps')
    (tmp_path / 'run/sweep.json').write_text('{}')
    with pytest.raises(ValueError, match='holds a sweep'):
        _fit(rows, tmp_path / 'run')


@pytest.fixture(scope='module')
def reviews(tmp_path_factory) -> Any:
    return tiny_runs.film_reviews(tmp_path_factory.mktemp('reviews'))


def test_marks_name_what_changed(reviews, tmp_path):
    config = reviews.copy_and_resolve_references()
    folder = tmp_path / 'copy'
    shutil.copytree(config.model.source, folder)
    config.model.source = str(folder)
    before = _marks(config)
    assert before == _marks(config)
    names = {'the file', 'the tokenizer', 'the rows of train', 'the rows of validation'}
    assert all(any(mark.startswith(name) for mark in before) for name in names)
    tokenizer = folder / 'tokenizer.json'
    content = json.loads(tokenizer.read_text())
    words = content['model']['vocab']
    words['fine'], words['weak'] = words['weak'], words['fine']
    tokenizer.write_text(json.dumps(content))
    found = changes(before, _marks(config))
    assert 'the tokenizer has changed' in found and 'the rows of train have changed' in found
    assert not any(each.startswith('the file') for each in found)


def _marks(config):
    return data_marks(build(infer(read_settings(config.to_dict()))))


def test_the_chat_template_is_a_mark():
    rows = [{'x': np.float32(0)}]
    task = peftjax.train.Task(splits={'train': rows}, totals=_totals)
    mlp = peftjax.testing.tiny_mlp()

    def marks(template):
        return data_marks(
            Run(
                model=mlp,
                transform=peftjax.lora(rank=2, targets=r'hidden'),
                task=task,
                make_optimizer=lambda numbers: optax.adam(1e-2),
                steps=1,
                steps_per_epoch=1,
                log_every=1,
                eval_every=1,
                save_every=1,
                description={'data': {'chat_template': template}},
            )
        )

    assert changes(marks('a'), marks('b')) == ['the chat template has changed']
