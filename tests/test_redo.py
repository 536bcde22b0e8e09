"""What is missing of the folder of a run is made again, with the same bits, and named."""

import io
import json
import shutil

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

import peftjax
from peftjax.interop.folder.read import read_arrays
from peftjax.train.redo import damage
from peftjax.train.trackers.log import MetricsWriter, read_metrics
from tests.whole_runs import without_rates


def _totals(forward, batch):
    logits = forward({'x': batch['x']})
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
    return {'loss': losses.sum(), 'weights': np.float32(len(losses))}


def _fit(folder, **options):
    """Trains in a folder; gives what was said."""
    rng = np.random.default_rng(0)
    rows = [{'x': rng.normal(size=4).astype('f'), 'y': np.int32(i % 2)} for i in range(32)]
    said = io.StringIO()
    peftjax.train.fit(
        peftjax.testing.tiny_mlp(),
        peftjax.lora(rank=2, targets=r'hidden'),
        peftjax.train.Task(
            splits={'train': rows[:24], 'validation': rows[24:]},
            totals=_totals,
            batch_size=4,
            eval_batch_size=4,
        ),
        optimizer=optax.adam(1e-2),
        duration='8 steps',
        workdir=folder,
        log_every='1 step',
        eval_every='2 steps',
        save_every='2 steps',
        console=Console(file=said, width=500),
        **options,
    )
    return said.getvalue()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole') / 'run'
    _fit(folder)
    return folder


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _log_of_noise(folder):
    file = folder / 'metrics.jsonl'
    file.write_bytes(file.read_bytes().replace(b'"step": 3', b'"st\xffp": 3', 1))


@pytest.mark.sampled
@pytest.mark.parametrize(
    ('harm', 'told', 'step'),
    [
        (lambda f: (f / 'result.json').unlink(), 'has lost result.json', 6),
        (lambda f: _cut(f / 'result.json'), r'result.json is not JSON', 6),
        (lambda f: (f / 'result.json').write_text('{}'), 'holds no result of a run', 6),
        (lambda f: _cut(f / 'adapter_last/adapter.safetensors'), 'adapter_last.*SHA|corrupt', 6),
        (lambda f: shutil.rmtree(f / 'adapter_last'), 'adapter_last.*does not exist', 6),
        (lambda f: shutil.rmtree(f / 'adapter'), 'adapter/peftjax.json does not exist', 0),
        (_log_of_noise, 'metrics.jsonl, line ', 0),
    ],
)
def test_a_damaged_run_is_trained_again_and_named(whole, tmp_path, harm, told, step):
    folder = tmp_path / 'run'
    shutil.copytree(whole, folder)
    assert damage(folder) is None
    harm(folder)
    said = _fit(folder)
    assert told.replace('|corrupt', '').partition('.*')[0] in said
    assert f'training goes on from step {step}' in said
    assert damage(folder) is None
    assert without_rates(folder) == without_rates(whole)
    for name in ('adapter', 'adapter_last'):
        jax.tree.map(
            np.testing.assert_array_equal,
            read_arrays(folder / name).adapter,
            read_arrays(whole / name).adapter,
        )
    results = [json.loads((each / 'result.json').read_text()) for each in (folder, whole)]
    assert results[0]['best_step'] == results[1]['best_step']
    assert 'trained again' not in _fit(folder)


def test_a_folder_that_was_emptied_but_for_its_checkpoints_is_made_again(whole, tmp_path):
    shutil.copytree(whole / 'checkpoints', tmp_path / 'run/checkpoints')
    assert 'training goes on from step 0' in _fit(tmp_path / 'run')
    assert without_rates(tmp_path / 'run') == without_rates(whole)


def test_a_damaged_line_of_a_log_is_named_and_what_lies_behind_it_dropped(tmp_path):
    MetricsWriter(tmp_path).write(1, {'loss': 0.5})
    with (tmp_path / 'metrics.jsonl').open('ab') as file:
        file.write(b'\0\0\0\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2 is not JSON'):
        read_metrics(tmp_path)
    MetricsWriter(tmp_path, resumed_from=1)
    assert read_metrics(tmp_path) == [{'step': 1, 'loss': 0.5}]
