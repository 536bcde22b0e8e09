"""The training program end to end, on tiny random models and text made here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from configs import lora_smollm2
from peftjax.train.build import build
from peftjax.train.engine import Alone
from peftjax.train.fitting import train
from peftjax.train.placement import Placement
from peftjax.train.settings import read_settings
from peftjax.train.trackers.log import MetricsWriter, read_metrics
from peftjax.train.window import NonFiniteError
from tests import tiny_runs
from tests.whole_runs import ROOT, bits, final_states, run_command, run_config, without_rates


@pytest.fixture(scope='module')
def reviews(tmp_path_factory) -> Any:
    return tiny_runs.film_reviews(tmp_path_factory.mktemp('reviews'))


@pytest.fixture
def config(reviews) -> Any:
    return reviews.copy_and_resolve_references()


def test_a_run_learns_and_leaves_its_results(config, tmp_path):
    config.duration, config.methods, config.lr = '60 steps', ('full',), 1e-2
    config.eval_every = config.save_every = '20 steps'
    result = run_config(config, tmp_path)
    assert result['test/accuracy'] > 0.8  # by chance 0.5
    assert result == json.loads((tmp_path / 'result.json').read_text())
    assert (tmp_path / 'learning_curve.png').read_bytes().startswith(b'\x89PNG')
    assert list((tmp_path / 'tensorboard').iterdir())
    assert json.loads((tmp_path / 'config.json').read_text())['model']['source'].endswith('bert')
    rows = read_metrics(tmp_path)
    assert rows[-1]['step'] == 60
    assert {'test/loss', 'test/accuracy'} < rows[-1].keys()
    losses = [row['train/loss'] for row in rows if 'train/loss' in row]
    assert len(losses) == 30
    assert all(row['train/tflops_per_second'] > 0 for row in rows if 'train/loss' in row)
    assert losses[-1] < losses[0]


def test_starting_a_finished_run_again_changes_nothing(config, tmp_path):
    config.duration = '2 steps'
    first = run_config(config, tmp_path)
    rows = without_rates(tmp_path)
    again = run_config(config, tmp_path)
    assert first['test/loss'] == again['test/loss']
    assert rows == without_rates(tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(config, tmp_path):
    config.lr, config.warmup = 1e30, 0.9
    config.log_every = config.save_every = '1 step'
    with pytest.raises(NonFiniteError, match=r'step 2: loss .*newest checkpoint'):
        run_config(config, tmp_path)
    [(state, _)] = final_states(config, tmp_path)
    assert int(state.step) == 1
    assert all(np.isfinite(bits(leaf)).all() for leaf in jax.tree.leaves(state))


def test_parts_of_a_batch_make_the_same_step(config, tmp_path):
    config.lora.dropout = 0.0
    run_config(config, tmp_path / 'whole')
    config.accumulate = 4
    run_config(config, tmp_path / 'parts')
    losses = [
        [row['train/loss'] for row in read_metrics(folder) if 'train/loss' in row]
        for folder in (tmp_path / 'whole', tmp_path / 'parts')
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_profile_is_a_trace_of_some_steps(config, tmp_path):
    config.duration = '14 steps'
    train(read_settings(config), tmp_path, Console(quiet=True), profile=True)
    traces = list((tmp_path / 'profile').rglob('*.xplane.pb'))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000


def test_a_batch_that_the_mesh_does_not_divide_is_refused(config, tmp_path):
    config.data.batch_size, config.mesh.data = 6, 8
    with pytest.raises(ValueError, match=r'a batch of 6 examples cannot be shared by 8 groups'):
        run_config(config, tmp_path)


def test_a_checkpoint_holds_the_adapter_and_not_the_base(config, tmp_path):
    config.duration, config.lora.rank = '2 steps', 1
    result = run_config(config, tmp_path)
    [(state, _)] = final_states(config, tmp_path)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.adapter)) == result['trainable']
    assert result['trainable'] < result['base'] / 2


@pytest.mark.sampled
@pytest.mark.parametrize(
    'methods', [('full',), ('select',), ('bottleneck', 'select'), ('lora', 'select')], ids='+'.join
)
def test_the_trainer_takes_any_method_by_name(config, tmp_path, methods):
    config.duration, config.methods = '2 steps', methods
    config.bottleneck = ConfigDict({'size': 4, 'targets': 'layers/ffn'})
    assert np.isfinite(run_config(config, tmp_path)['test/loss'])


def test_unknown_names_in_a_config_are_answered_with_the_known_ones(config):
    config.task = 'reviews'
    with pytest.raises(ValueError, match=r"no task 'reviews'; near names: \['film_reviews'"):
        build(read_settings(config))
    config.task, config.methods = 'film_reviews', ('lorra',)
    with pytest.raises(ValueError, match="'lorra', which peftjax does not have; it has .*lora"):
        build(read_settings(config))
    config.methods = ('bottleneck',)
    with pytest.raises(
        ValueError, match="bottleneck in methods: missing a required argument: 'siz"
    ):
        build(read_settings(config))


def test_packed_and_padded_rows_have_the_same_loss(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        json.dumps(
            {name: ' '.join(rng.choice(tiny_runs.WORDS, rng.integers(2, 8))) for name in fields}
        )
        for fields in [('question', 'answer')] * 1010
    ]
    (tmp_path / 'problems.jsonl').write_text('\n'.join(lines), encoding='utf-8')
    packed = _loss_of_problems(tmp_path / 'packed', '')
    padded = _loss_of_problems(tmp_path / 'padded', 'padded')
    np.testing.assert_allclose(packed, padded, rtol=1e-5)


def _loss_of_problems(folder: Path, arg: str) -> float:
    config: Any = lora_smollm2.get_config(arg)
    config.model.source = str(tiny_runs.checkpoint(folder, 'tiny_llama'))
    config.data.source = str(folder.parent / 'problems.jsonl')
    config.data.lengths, config.lora.rank = (32, 64), 2
    run = build(read_settings(config))
    state, beside = run.start()
    return Alone(run, state, beside, Placement(None)).score('test').scores(0)['loss']


def test_a_metrics_file_cut_short_is_read_up_to_its_last_whole_line(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {'train/loss': 1.0 / step})
    writer.close()
    with (tmp_path / 'metrics.jsonl').open('a', encoding='utf-8') as file:
        file.write('{"step": 4, "tra')
    assert [row['step'] for row in read_metrics(tmp_path)] == [1, 2, 3]
    MetricsWriter(tmp_path, resumed_from=2).close()
    assert [row['step'] for row in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--config=configs/lora_sentiment.py:tinny',), "unknown config argument 'tinny'; known:"),
        (('--config=configs/lora_sentiment.py', '--config.lr=fast'), "--lr does not take 'fast'"),
        (('--config=configs/lora_sentiment.py', '--config.lrr=1'), 'unknown flag --lrr'),
        (('--config=configs/nothing.py',), 'nothing.py does not exist'),
    ],
)
def test_the_command_ends_at_a_wrong_flag_with_no_traceback(flags, message, tmp_path):
    done = _command(*flags, '--workdir', str(tmp_path / 'run'))
    assert done.returncode == 2
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'run').exists()


def test_the_command_trains(config, tmp_path):
    shutil.copytree(config.model.source, tmp_path / 'bert')
    done = _command(
        '--config=configs/lora_sentiment.py:tiny',
        f'--config.model.source={tmp_path / "bert"}',
        f'--config.data.source={config.data.source}',
        *('--workdir', str(tmp_path / 'run')),
    )
    assert done.returncode == 0, done.stderr
    assert 'accuracy, test' in done.stdout
    assert 'trainable parameters' in done.stdout
    assert 'checkpoint_manager' not in done.stderr  # no log lines over the progress bar


@pytest.mark.parametrize(
    ('named', 'folder'), [(None, 'peftjax/compiled'), ('elsewhere', 'elsewhere'), ('', '')]
)
def test_compiled_programs_are_kept_where_the_environment_says(named, folder, tmp_path):
    environment = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path)}
    environment.pop('JAX_COMPILATION_CACHE_DIR')
    if named is not None:
        environment['JAX_COMPILATION_CACHE_DIR'] = named and str(tmp_path / named)
    code = (
        'import jax, jax.numpy as jnp\n'
        'from peftjax.train.compilation_cache import keep_compiled_programs\n'
        'keep_compiled_programs()\n'
        'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)\n'
        'jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8)))\n'
    )
    command = [sys.executable, '-c', code]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    kept = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*-cache')}
    assert kept == ({folder} if folder else set())


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command([sys.executable, '-m', 'experiments.main', *arguments])
