"""What a sweep refuses, and what its folder holds: one sweep, each of whose groups has a worker."""

import os
import shutil
import subprocess
from types import ModuleType

import jax
import numpy as np
import pytest

from peftjax.interop.folder.read import read_arrays
from peftjax.sweep import work
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.groups import group, prepare
from peftjax.sweep.rows import expand
from peftjax.train.settings import read_settings
from peftjax.train.tasks.infer import infer
from tests.test_tables import write_table
from tests.tiny_runs import WORDS, checkpoint
from tests.tiny_sweeps import RATES, TWO, rows_of, run
from tests.whole_runs import ROOT, run_config, without_rates

pytestmark = pytest.mark.usefixtures('rows_are_traced_once')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'lora.rnak': 4}, r"run 000: no setting 'lora.rnak'; near names: \['lora.rank'"),
        ({'lorra.rank': 4}, r"no setting 'lorra'; near names: \['lora.rank'"),
        ({'select.rank': 4}, r"no setting 'select.rank'"),
        ({'lora.rank': 'four'}, r"run 000: lora.rank does not take 'four'"),
    ],
)
def test_fields_that_are_not_there_are_named(config, changes, message):
    with pytest.raises(ValueError, match=message):
        rows_of(config, changes)


def test_wrong_sweeps_are_refused_before_anything_runs(config, tmp_path):
    module = ModuleType('lonely')
    with pytest.raises(ValueError, match=r"no sweep 'rank' in lonely: write def sweep_rank\(add\)"):
        expand(module, 'rank', read_settings(config))
    with pytest.raises(ValueError, match='adds no run'):
        rows_of(config)
    with pytest.raises(ValueError, match='runs 000 and 001 are the same'):
        rows_of(config, {'seed': 0}, {'seed': 0})
    with pytest.raises(ValueError, match=r"run 001 \{'lora.rank': 0\}: rank must be a whole"):
        run(rows_of(config, {'seed': 0}, {'lora.rank': 0}), tmp_path / 'a')
    assert not (tmp_path / 'a').exists()
    with pytest.raises(ValueError, match='leave all axes of mesh at 1'):
        run(rows_of(config, {'mesh.data': 2}), tmp_path / 'a')


def test_one_folder_holds_one_sweep_and_a_group_has_one_worker(config, tmp_path):
    rows = rows_of(config, *TWO)
    (mine,) = group(prepare(rows), 2**33, 32)
    one, other = SweepFolder(tmp_path / 'a'), SweepFolder(tmp_path / 'a')
    held = one.begin(rows, [mine.names], 'x.py', 'all')
    # Who comes second takes the groups that there are.
    assert held == other.begin(rows, [['000'], ['001']], 'x.py', 'all') == {'000': ['000', '001']}
    with one.claim(mine) as first, other.claim(mine) as second:
        assert first and not second
    with other.claim(mine) as second:
        assert second
    assert [line['status'] for line in one.write_results()] == ['waiting', 'waiting']
    changed = rows_of(config, {'seed': 5}, *TWO[1:])
    with pytest.raises(ValueError, match='holds another sweep .*seed: 0 -> 5'):
        run(changed, tmp_path / 'a')
    with pytest.raises(
        ValueError, match='group 000 of .* holds run 001, which the sweep no longer'
    ):
        run(rows[:1], tmp_path / 'a')
    with pytest.raises(ValueError, match='group 000 of .* takes .* MiB, more than the'):
        run(rows, tmp_path / 'a', memory=mine.memory - 1)


@pytest.mark.slow
def test_rows_that_are_added_are_run_and_no_others(config, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / 'a')
    trained, train_group = [], work.train_group

    def noted(each, *others):
        trained.append(each.names)
        train_group(each, *others)

    monkeypatch.setattr(work, 'train_group', noted)
    lines = run(rows_of(config, *TWO, RATES[0]), tmp_path / 'a')
    assert trained == [['002']]
    assert [line['status'] for line in lines] == ['done'] * 3


@pytest.mark.sampled
@pytest.mark.parametrize('harm', ['deleted', 'a cut result', 'a cut adapter'])
def test_a_folder_that_is_deleted_or_damaged_is_trained_again(config, whole, tmp_path, harm):
    shutil.copytree(whole, tmp_path / 'a')
    row = tmp_path / 'a/runs/001'
    if harm == 'deleted':
        shutil.rmtree(row)
    else:
        file = row / ('result.json' if harm == 'a cut result' else 'adapter/adapter.safetensors')
        file.write_bytes(file.read_bytes()[:60])
        assert SweepFolder(tmp_path / 'a').over(['000'])
    other = (tmp_path / 'a/runs/000/result.json').stat().st_mtime_ns
    lines = run(rows_of(config, *TWO), tmp_path / 'a')
    assert [line['status'] for line in lines] == ['done', 'done']
    assert (tmp_path / 'a/runs/000/result.json').stat().st_mtime_ns == other
    assert without_rates(row) == without_rates(whole / 'runs/001')
    arrays = [read_arrays(each / 'adapter').adapter for each in (row, whole / 'runs/001')]
    jax.tree.map(np.testing.assert_array_equal, *arrays)


def test_damaged_files_of_a_sweep_are_named(whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'a')
    folder = SweepFolder(tmp_path / 'a')
    log = tmp_path / 'a/runs/000/metrics.jsonl'
    log.write_text('{\n' + log.read_text())
    with pytest.raises(ValueError, match=r'runs/000/metrics\.jsonl, line 1 is not JSON'):
        folder.write_results()
    (tmp_path / 'a/runs/000/result.json').write_text('[]')
    with pytest.raises(ValueError, match=r'runs/000/result\.json holds a JSON list'):
        folder.results()
    (tmp_path / 'a/sweep.json').write_text('{')
    with pytest.raises(ValueError, match=r'sweep\.json is not JSON'):
        folder.about()


def test_a_sweep_and_a_run_do_not_share_a_folder(config, whole, tmp_path):
    (tmp_path / 'a/checkpoints').mkdir(parents=True)
    with pytest.raises(ValueError, match='holds a run: choose another'):
        run(rows_of(config, *TWO), tmp_path / 'a')
    with pytest.raises(ValueError, match='holds a sweep: choose another'):
        run_config(config, whole)


def test_the_jobs_of_an_array_run_the_command():
    """SLURM has the batch script run by bash; it hands its arguments on, and passes signals."""
    script = ROOT / 'experiments/sweep.sbatch'
    found = subprocess.run(
        ['bash', script, '--sweep', 'rank', '--config.lr=1e-3'],
        env={**os.environ, 'PYTHON': 'echo'},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == '-m experiments.sweep --sweep rank --config.lr=1e-3\n'
    assert '#SBATCH --signal=B:TERM@120' in script.read_text(encoding='utf-8').splitlines()


def test_runs_on_a_table_find_its_columns_and_classes_as_a_run_by_itself_does(tmp_path):
    tables = {}
    for name, labels in (('two', 'ab'), ('three', 'abc')):
        rows = [
            {'text': f'{WORDS[n % 8]} {WORDS[n // 8]}', 'label': labels[n % len(labels)]}
            for n in range(64)
        ]
        tables[name] = str(write_table(tmp_path / f'{name}.jsonl', rows))
    settings = {'source': str(checkpoint(tmp_path / 'base', 'tiny_bert'))}
    given = {'model': settings, 'data': {'source': tables['two']}, 'task': 'classification'}
    given |= {'methods': ['lora'], 'lora': {'rank': 1, 'targets': 'layers/.*/kernel'}}
    lower, other, whole = rows_of(
        given, {'lr': 0.1}, {'data.source': tables['three']}, {'methods': ['full']}
    )
    assert lower.settings == infer(read_settings(given).change({'lr': 0.1}))
    assert lower.settings.model.num_labels == 2 and lower.settings.methods == ('lora', 'select')
    assert other.settings.model.num_labels == 3
    assert list(other.settings.data.labels) == ['a', 'b', 'c']
    assert whole.settings.methods == ('full',) and whole.settings.model.num_labels == 2
    assert len(prepare([lower, other])) == 2
    with pytest.raises(ValueError, match="run 000: data.columns.text is 'none'"):
        rows_of(given, {'data.columns': {'text': 'none', 'label': 'label'}})
