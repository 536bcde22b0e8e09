"""The training program end to end, on tiny random models and text made here."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from benchmarks import faults
from configs import lora_sentiment, lora_smollm2
from experiments import build, data, train
from experiments.checkpoints import Checkpoints, CheckpointsError
from experiments.fingerprint import fingerprint
from experiments.interrupt import Interrupted
from experiments.metrics import MetricsWriter, read_metrics
from experiments.window import NonFiniteError
from peftjax.training import init_state
from tests import tiny_runs
from tests.checkpoint_files import rewrite

ROOT = Path(__file__).parents[1]
WORDS = 'bert.embeddings.word_embeddings.weight'
RATES = tuple(f'train/{name}_per_second' for name in ('steps', 'tokens', 'tflops'))


@pytest.fixture(scope='module')
def reviews(tmp_path_factory) -> ConfigDict:
    return tiny_runs.film_reviews(tmp_path_factory.mktemp('reviews'))


@pytest.fixture
def config(reviews) -> ConfigDict:
    return reviews.copy_and_resolve_references()


def _train(config: ConfigDict, workdir: Path) -> dict[str, float]:
    return train.train(config, workdir, Console(quiet=True))


def _final_states(config: ConfigDict, *workdirs: Path):
    run = build.build(config)
    adapter = run.transform.init(jax.random.key(9), run.model)
    like = init_state(adapter, run.optimizer, jax.random.key(9))
    like = run.placement.state(like, run.model)
    resolved, base = json.loads(config.to_json()), fingerprint(run.model.params)
    return [Checkpoints(workdir, resolved, base).restore(like) for workdir in workdirs]


def _without_rates(workdir: Path) -> list[dict[str, float]]:
    rows = read_metrics(workdir)
    return [{name: value for name, value in row.items() if name not in RATES} for row in rows]


def test_a_run_learns_and_leaves_its_results(config, tmp_path):
    config.duration, config.peft, config.lr = '60 steps', ('full',), 1e-2
    config.eval_every = config.save_every = '20 steps'
    result = _train(config, tmp_path)
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


def test_a_resumed_run_ends_with_the_same_bits(config, tmp_path, monkeypatch):
    _train(config, tmp_path / 'whole')
    seen = []

    def interrupt_in_step_6(batch):
        seen.append(batch)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(data, 'token_count', interrupt_in_step_6)
        with pytest.raises(KeyboardInterrupt):
            _train(config, tmp_path / 'broken')
    _train(config, tmp_path / 'broken')
    whole, broken = _final_states(config, tmp_path / 'whole', tmp_path / 'broken')
    _assert_same_bits(whole, broken)
    assert _without_rates(tmp_path / 'whole') == _without_rates(tmp_path / 'broken')


def test_starting_a_finished_run_again_changes_nothing(config, tmp_path):
    config.duration = '2 steps'
    first = _train(config, tmp_path)
    rows = _without_rates(tmp_path)
    again = _train(config, tmp_path)
    assert first['test/loss'] == again['test/loss']
    assert rows == _without_rates(tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(config, tmp_path):
    config.lr, config.warmup = 1e30, 0.9
    config.log_every = config.save_every = '1 step'
    with pytest.raises(NonFiniteError, match=r'step 2: loss .*newest checkpoint'):
        _train(config, tmp_path)
    [(state, _, _)] = _final_states(config, tmp_path)
    assert int(state.step) == 1
    assert all(np.isfinite(_bits(leaf)).all() for leaf in jax.tree.leaves(state))


def test_a_work_folder_of_another_config_is_refused(config, tmp_path):
    config.duration = '2 steps'
    _train(config, tmp_path)
    config.lr = 0.5
    with pytest.raises(ValueError, match=r'another config \(lr: 0.001 -> 0.5\)'):
        _train(config, tmp_path)


def test_a_work_folder_of_another_base_is_refused(config, tmp_path):
    config.duration = '2 steps'
    config.model.source = str(shutil.copytree(config.model.source, tmp_path / 'bert'))
    _train(config, tmp_path / 'run')
    rewrite(tmp_path / 'bert', lambda weights: weights[WORDS].__iadd__(1e-3))
    with pytest.raises(ValueError, match=r'on another base: the values of .*bert have the finger'):
        _train(config, tmp_path / 'run')


def test_sigterm_saves_and_the_run_goes_on_with_the_same_bits(config, tmp_path, monkeypatch):
    _train(config, tmp_path / 'whole')
    with monkeypatch.context() as patch:
        patch.setattr(data, 'token_count', _terminate_in(5))
        with pytest.raises(Interrupted, match='step 5 of 8'):
            _train(config, tmp_path / 'stopped')
    [stopped] = _final_states(config, tmp_path / 'stopped')
    assert int(stopped.state.step) == 5
    _train(config, tmp_path / 'stopped')
    _assert_same_bits(*_final_states(config, tmp_path / 'whole', tmp_path / 'stopped'))


@pytest.mark.parametrize('how', ['cut', 'changed', 'lost'])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(config, tmp_path, how):
    _train(config, tmp_path / 'whole')
    shutil.copytree(tmp_path / 'whole', tmp_path / 'torn')
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
    _train(config, tmp_path / 'torn')
    assert (tmp_path / 'torn/damaged/8').is_dir()
    _assert_same_bits(*_final_states(config, tmp_path / 'whole', tmp_path / 'torn'))
    assert _without_rates(tmp_path / 'whole') == _without_rates(tmp_path / 'torn')


def test_no_whole_checkpoint_is_an_error_and_not_a_new_run(config, tmp_path):
    config.duration = '2 steps'
    _train(config, tmp_path)
    shutil.rmtree(tmp_path / 'checkpoints/2/state')
    with pytest.raises(CheckpointsError, match=r'is whole \(step 2: '):
        _train(config, tmp_path)


def test_a_full_disk_stops_the_run_and_the_last_whole_checkpoint_goes_on(config, tmp_path):
    del config.lora['dropout']  # which the config file does not have
    _train(config, tmp_path / 'whole')
    code = (
        'import resource, signal, sys, runpy; from experiments import checkpoints\n'
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
    done = _run([sys.executable, '-c', code, *_flags(config), '--workdir', tmp_path / 'full'])
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('stopped: a checkpoint could not be written to ')
    assert 'The newest whole one is of step 2' in last
    _train(config, tmp_path / 'full')
    _assert_same_bits(*_final_states(config, tmp_path / 'whole', tmp_path / 'full'))


def test_killed_runs_end_with_the_same_bits(tmp_path):
    # Thirty of them: python -m benchmarks.faults --kills 30.
    arguments = faults.flags(tmp_path)
    length = faults.undisturbed(tmp_path, arguments)
    trials = [faults.trial(tmp_path, arguments, (0.0, length), seed) for seed in (1, 2)]
    assert all(trial.survived and trial.identical for trial in trials), trials


def test_the_best_checkpoint_is_kept_beside_the_newest(config, tmp_path):
    config.lr, config.duration = 1e-6, '8 steps'
    config.eval_every = config.save_every = '1 step'
    worse = iter([0.5, 0.1, *(0.2 + i for i in range(6))])
    evaluated = []

    def scores(sums, batches):
        del sums, batches
        evaluated.append(next(worse, 9.0))
        return {'loss': evaluated[-1], 'accuracy': 0.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, 'evaluate', scores)
        result = _train(config, tmp_path)
    kept = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert kept == [2, 7, 8]
    assert result['best_step'] == 2


def test_a_run_goes_on_on_another_mesh(config, tmp_path, monkeypatch):
    config.lora.dropout = 0.0
    _train(config, tmp_path / 'alone')
    monkeypatch.setattr(data, 'token_count', _terminate_in(5))
    with pytest.raises(Interrupted):
        _train(config, tmp_path / 'moved')
    monkeypatch.undo()
    config.mesh.fsdp, config.mesh.tensor = 4, 2
    _train(config, tmp_path / 'moved')
    (alone, _, _), (moved, _, _) = _final_states(config, tmp_path / 'alone', tmp_path / 'moved')
    for one, other in zip(
        jax.tree.leaves(alone.adapter), jax.tree.leaves(moved.adapter), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    losses = [
        [row['validation/loss'] for row in read_metrics(folder) if 'validation/loss' in row]
        for folder in (tmp_path / 'alone', tmp_path / 'moved')
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_parts_of_a_batch_make_the_same_step(config, tmp_path):
    config.lora.dropout = 0.0
    _train(config, tmp_path / 'whole')
    config.accumulate = 4
    _train(config, tmp_path / 'parts')
    losses = [
        [row['train/loss'] for row in read_metrics(folder) if 'train/loss' in row]
        for folder in (tmp_path / 'whole', tmp_path / 'parts')
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_profile_is_a_trace_of_some_steps(config, tmp_path):
    config.duration = '14 steps'
    train.train(config, tmp_path, Console(quiet=True), profile=True)
    traces = list((tmp_path / 'profile').rglob('*.xplane.pb'))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000


def test_two_processes_train_and_resume_as_one_does(config, tmp_path):
    del config.lora['dropout']
    alone = _train(config, tmp_path / 'alone')
    folder = tmp_path / 'two'
    for _ in range(2):
        outputs = _two_processes([*_flags(config), f'--workdir={folder}'])
        assert ['accuracy, test' in each for each in outputs] == [True, False]
        result = json.loads((folder / 'result.json').read_text())
        assert result['test/loss'] == pytest.approx(alone['test/loss'], rel=1e-5)
        one, two = (_losses(tmp_path / name) for name in ('alone', 'two'))
        np.testing.assert_allclose(one, two, rtol=1e-5)
        shutil.rmtree(folder / 'checkpoints/8')  # the second start goes on from step 6


def _two_processes(arguments: Sequence[str]) -> list[str]:
    """What two processes of two devices each print, who share a mesh."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
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


def test_a_batch_that_the_mesh_does_not_divide_is_refused(config, tmp_path):
    config.data.batch_size, config.mesh.data = 6, 8
    with pytest.raises(ValueError, match=r'a batch of 6 examples cannot be shared by 8 groups'):
        _train(config, tmp_path)


def test_a_checkpoint_holds_the_adapter_and_not_the_base(config, tmp_path):
    config.duration, config.lora.rank = '2 steps', 1
    result = _train(config, tmp_path)
    [(state, _, _)] = _final_states(config, tmp_path)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.adapter)) == result['trainable']
    assert result['trainable'] < result['base'] / 2


@pytest.mark.parametrize(
    'peft', [('full',), ('select',), ('bottleneck', 'select'), ('lora', 'select')], ids='+'.join
)
def test_the_trainer_takes_any_method_by_name(config, tmp_path, peft):
    config.duration, config.peft = '2 steps', peft
    config.bottleneck = ConfigDict({'size': 4, 'targets': 'layers/ffn'})
    assert np.isfinite(_train(config, tmp_path)['test/loss'])


def test_unknown_names_in_a_config_are_answered_with_the_known_ones(config):
    config.data.name = 'reviews'
    with pytest.raises(ValueError, match="unknown data 'reviews'; known: film_reviews, gsm8k"):
        build.build(config)
    config.data.name, config.peft = 'film_reviews', ('lorra',)
    with pytest.raises(ValueError, match="'lorra', which peftjax does not have; it has .*lora"):
        build.build(config)
    config.peft = ('bottleneck',)
    with pytest.raises(ValueError, match=r'no config\.bottleneck'):
        build.build(config)


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
    config = lora_smollm2.get_config(arg)
    config.model.source = str(tiny_runs.checkpoint(folder, 'tiny_llama'))
    config.data.source = str(folder.parent / 'problems.jsonl')
    config.data.lengths, config.lora.rank = (32, 64), 2
    run = build.build(config)
    adapter = run.transform.init(jax.random.key(0), run.model)
    sums = jax.jit(run.sums)
    batches = data.eval_batches(run.task.splits['test'], batch_size=2, lengths=config.data.lengths)
    return build.evaluate(lambda batch: sums(adapter, run.model.params, batch), batches)['loss']


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


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--config=configs/lora_sentiment.py', '--config.lrr=1'), 'no such config key: lrr'),
        (('--config=configs/lora_sentiment.py:tinny',), "unknown config argument 'tinny'; known:"),
        (('--config=configs/lora_sentiment.py', '--config.lr=fast'), 'fast'),
        (('--config=configs/nothing.py',), 'nothing.py'),
    ],
)
def test_a_wrong_flag_ends_with_a_message_and_no_traceback(flags, message, tmp_path):
    done = _command(*flags, '--workdir', str(tmp_path / 'run'))
    assert done.returncode == 1
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
        'import jax, jax.numpy as jnp; from experiments.compiled import keep_compiled_programs\n'
        'keep_compiled_programs()\n'
        'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)\n'
        'jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8)))\n'
    )
    command = [sys.executable, '-c', code]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    kept = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*-cache')}
    assert kept == ({folder} if folder else set())


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return _run([sys.executable, '-m', 'experiments.main', *arguments])


def _flags(config: ConfigDict) -> list[str]:
    """The fields of a tiny run in which it differs from its config file."""
    file = lora_sentiment.get_config()
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


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _terminate_in(step: int):
    """A `token_count` that asks the process to end in that step."""
    seen = []

    def count(batch):
        seen.append(batch)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    return count


def _assert_same_bits(one, other):
    assert one.data == other.data
    for mine, theirs in zip(jax.tree.leaves(one.state), jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(_bits(mine), _bits(theirs))


def _bits(leaf) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)
