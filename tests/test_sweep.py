"""Sweeps: rows of one program are the runs they would be alone, and no row is lost."""

import csv
import json
import os
import shutil
import subprocess
from types import ModuleType

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from experiments.build import start
from experiments.sweeps import groups, program, result, work
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.groups import group, prepare
from experiments.sweeps.member import members_of
from experiments.sweeps.pruning import Halving, nobody
from experiments.sweeps.rows import expand
from experiments.sweeps.run import Sweep
from tests import tiny_runs
from tests.whole_runs import ROOT, bits, final_states, run_config, without_rates


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    config = tiny_runs.film_reviews(tmp_path_factory.mktemp('reviews'))
    config.eval_every, config.save_every = '2 steps', '4 steps'
    return config


@pytest.fixture
def config(base):
    return base.copy_and_resolve_references()


@pytest.fixture(scope='module')
def shelf():
    return groups._Shelf()


@pytest.fixture(scope='module')
def traced():
    return {}


@pytest.fixture(autouse=True)
def _rows_are_traced_once(shelf, traced, monkeypatch):
    """Tests with rows alike share what `prepare` makes of them, which is never changed."""
    trace = groups._ready

    def ready(row, run):
        text = row.config.to_json()
        if text not in traced:
            traced[text] = trace(row, run)
        return traced[text]._replace(row=row)

    monkeypatch.setattr(groups, '_Shelf', lambda: shelf)
    monkeypatch.setattr(groups, '_ready', ready)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The folder of a row's run by itself, which tests with the same row share."""
    folders = {}

    def folder_of(config):
        text = config.to_json()
        if text not in folders:
            folders[text] = tmp_path_factory.mktemp('alone')
            run_config(config, folders[text])
        return folders[text]

    return folder_of


def rows_of(config, *changes):
    module = ModuleType('config_of_a_test')
    vars(module)['sweep_all'] = lambda add: [add(**each) for each in changes]
    return expand(module, 'all', config)


def run(rows, folder, prune=nobody, **options):
    sweep = Sweep(SweepFolder(folder), Console(quiet=True), **options)
    sweep.run(rows, prune)
    return sweep.folder.results()


FOUR = (
    {'seed': 0, 'lr': 1e-3},
    {'seed': 1, 'lr': 1e-2, 'lora.rank': 2, 'lora.alpha': 8.0},
    {'seed': 0, 'lr': 3e-3, 'lora.dropout': 0.3, 'duration': '5 steps'},
    {'seed': 2, 'lr': 1e-3, 'lora.rank': 1, 'warmup': 0.5, 'clip_norm': 0.1},
)


def assert_as_alone(row, sweep, alone):
    """The row's folder holds what a run by itself writes, in the same numbers up to rounding."""
    folder, solo = sweep / 'rows' / row.name, alone(row.config)
    mine, theirs = without_rates(folder), without_rates(solo)
    assert [sorted(line) for line in mine] == [sorted(line) for line in theirs]
    for one, other in zip(mine, theirs, strict=True):
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), (name, one['step'])
    states = final_states(row.config, folder, solo)
    for one, other in zip(*(jax.tree.leaves(each.state) for each in states), strict=True):
        np.testing.assert_allclose(bits(one), bits(other), rtol=1e-4, atol=1e-6)
    found, own = (json.loads((where / 'result.json').read_text()) for where in (folder, solo))
    assert set(own) - set(found) <= {'best_step'} and found['status'] == 'done'
    assert (found['trainable'], found['base']) == (own['trainable'], own['base'])


@pytest.mark.slow
def test_rows_are_what_they_would_be_alone(config, alone, tmp_path):
    """Other seeds, rates, ranks, alphas, dropout and lengths of run, in one program."""
    rows = rows_of(config, *FOUR)
    assert len(group(prepare(rows), 2**33, 32)) == 1
    run(rows, tmp_path / 'sweep')
    for row in rows[1:3]:
        assert_as_alone(row, tmp_path / 'sweep', alone)


TWO = FOUR[:2]


@pytest.fixture(scope='module')
def whole(base, tmp_path_factory):
    """The folder of a sweep of two rows that nothing stopped."""
    folder = tmp_path_factory.mktemp('whole') / 'sweep'
    run(rows_of(base.copy_and_resolve_references(), *TWO), folder)
    return folder


RATES = tuple({'lr': rate} for rate in (3e-3, 1e-2, 1e-5, 3e-2))


def after_the_first_result():
    """In place of `write_whole`: a kill when one row of a group is over."""
    write = result.write_whole

    def write_and_stop(path, text):
        write(path, text)
        if path.name == 'result.json':
            raise KeyboardInterrupt

    return write_and_stop


def test_a_stopped_sweep_goes_on_with_the_same_bits(config, whole, tmp_path, monkeypatch):
    """Stopped in the middle, and again between two results, far from the last checkpoint."""
    rows = rows_of(config, *TWO)
    step, taken = program.Together.step, []

    def until_the_sixth(self, *args):
        taken.append(1)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(program.Together, 'step', until_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            run(rows, tmp_path / 'broken')
    with monkeypatch.context() as patch:
        patch.setattr(result, 'write_whole', after_the_first_result())
        with pytest.raises(KeyboardInterrupt):
            run(rows, tmp_path / 'broken')
    lines = run(rows, tmp_path / 'broken')
    assert [line['status'] for line in lines] == ['done', 'done']
    for row in rows:
        folders = [folder / 'rows' / row.name for folder in (whole, tmp_path / 'broken')]
        mine, theirs = map(without_rates, folders)
        assert mine == theirs
        states = final_states(row.config, *folders)
        for one, other in zip(*(jax.tree.leaves(each.state) for each in states), strict=True):
            np.testing.assert_array_equal(bits(one), bits(other))
    # What is done is not done again.
    monkeypatch.setattr(work, 'train_group', lambda *_: pytest.fail('trained again'))
    assert run(rows, tmp_path / 'broken') == lines


def test_rows_that_diverge_leave_and_hurt_no_other(config, alone, tmp_path):
    """Two of four leave, then the shorter of the rest; the last is compiled anew, at its rank."""
    rows = rows_of(config, *FOUR[1:3], {'lr': 1e30}, {'lr': 3e30})
    lines = run(rows, tmp_path / 'sweep')
    assert [line['status'] for line in lines] == ['done', 'done', 'diverged', 'diverged']
    assert all(0 < line['diverged_at'] <= 8 for line in lines[2:])
    for row in rows[:2]:
        assert_as_alone(row, tmp_path / 'sweep', alone)
    for line in csv.DictReader(
        (tmp_path / 'sweep/results.csv').read_text(encoding='utf-8').splitlines()
    ):
        assert line['status'] == lines[int(line['row'])]['status']
    table = pq.read_table(tmp_path / 'sweep/results.parquet')
    assert table['config.lr'].to_pylist() == [1e-2, 3e-3, 1e30, 3e30]
    assert table['test/accuracy'].to_pylist()[0] == lines[0]['test/accuracy']
    assert json.loads(table['config'].to_pylist()[2])['lr'] == 1e30


def test_groups_are_rows_of_one_program_that_fit(config):
    changes = [
        *({'seed': seed, 'lora.rank': rank} for seed in (0, 1) for rank in (1, 2)),
        {'peft': ('select',)},
        {'data.batch_size': 4},
        {'schedule': 'cosine'},
    ]
    ready = prepare(rows_of(config, *changes))
    together = [[each.row.name for each in found.rows] for found in group(ready, 2**33, 32)]
    assert together == [['000', '001', '002', '003'], ['004'], ['005'], ['006']]
    first = group(ready, 2**33, 32)[0]
    room = group(ready[:4], first.base + 2.5 * (first.each + first.step), 32)
    assert [len(each.rows) for each in room] == [2, 2] and room[0].memory < first.memory
    assert [len(each.rows) for each in group(ready[:4], 2**33, 3)] == [2, 2]
    with pytest.raises(ValueError, match='row 000 takes .* MiB, more than .*accumulate'):
        group(ready, first.base + first.each, 32)


def test_ranks_share_a_program_only_where_the_optimiser_treats_each_entry_by_itself(config):
    """A mean over a leaf, as of Adafactor, would be another with zeros beside it."""

    def programs():
        return len({each.key for each in prepare(rows_of(config, *ranks))})

    ranks = [{'lora.rank': rank} for rank in (1, 2)]
    assert programs() == 1
    config.optimizer, config.adafactor = 'adafactor', ConfigDict()
    assert programs() == 2


def test_numbers_of_what_is_around_the_optimiser_share_a_program(config, alone, tmp_path):
    config.around, config.lora_plus = ('lora_plus',), ConfigDict({'ratio': 4.0})
    rows = rows_of(config, {'lora_plus.ratio': 2.0}, {'lora_plus.ratio': 16.0})
    assert len(group(prepare(rows), 2**33, 32)) == 1
    run(rows, tmp_path / 'sweep')
    assert_as_alone(rows[0], tmp_path / 'sweep', alone)


def test_a_row_without_dropout_is_beside_others_what_it_is_alone(config, alone, tmp_path):
    rows = rows_of(config, {'lora.dropout': 0.3}, {'lora.dropout': 0.0})
    assert len(group(prepare(rows), 2**33, 32)) == 1
    run(rows, tmp_path / 'sweep')
    assert_as_alone(rows[1], tmp_path / 'sweep', alone)


def test_what_rows_hold_alike_is_held_once(config, tmp_path):
    config.peft, config.vera = ('vera',), ConfigDict({'rank': 4, 'targets': config.lora.targets})
    (mine,) = group(prepare(rows_of(config, {'lr': 1e-3}, {'lr': 1e-2})), 2**33, 32)
    first, second = members_of(mine, tmp_path)
    _, alone = start(second.config, second.run)
    trees = first.frozen, second.frozen, alone
    for one, other, expected in zip(*map(jax.tree.leaves, trees), strict=True):
        assert one is other
        np.testing.assert_array_equal(other, expected)


@pytest.mark.slow
def test_masks_of_dropout_are_those_of_the_row_alone(config, alone, tmp_path):
    """With several lengths, rows of one order of the data are side by side, and no others."""
    config.data.lengths = (4, 6, 8)
    rows = rows_of(config, *TWO)
    run(rows, tmp_path / 'sweep')
    assert_as_alone(rows[1], tmp_path / 'sweep', alone)


@pytest.mark.slow
@pytest.mark.parametrize('busy', [1, 2**20], ids=['one after another', 'side by side'])
def test_rows_of_several_lengths_are_what_they_would_be_alone(
    config, alone, tmp_path, monkeypatch, busy
):
    monkeypatch.setattr(groups, 'BUSY', busy)
    config.data.lengths, config.lora.dropout = (4, 6, 8), 0.0
    rows = rows_of(config, *TWO)
    run(rows, tmp_path / 'sweep')
    assert_as_alone(rows[1], tmp_path / 'sweep', alone)


def test_rows_that_divide_evenly_are_split_over_devices(config, alone, tmp_path, monkeypatch):
    """Eight rows on the eight devices of the tests, each with one; seven with none of it."""
    spread = []
    take = program.Together._take

    def noted(self, tree, axes, part):
        taken = take(self, tree, axes, part)
        spread.append({len(leaf.sharding.device_set) for leaf in jax.tree.leaves(taken)})
        return taken

    monkeypatch.setattr(program.Together, '_take', noted)
    rows = rows_of(config, *FOUR, *RATES)
    assert len(group(prepare(rows), 2**33, 32)) == 1
    run(rows, tmp_path / 'sweep')
    assert spread[:2] == [{8}, {8}]
    for row in rows[1:3]:
        assert_as_alone(row, tmp_path / 'sweep', alone)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'lora.rnak': 4}, r"row 000: no field 'lora.rnak'; near names: \['lora.rank'"),
        ({'lorra.rank': 4}, r"no field 'lorra.rank'; near names: \['lora.rank'"),
        ({'select.rank': 4}, r"no field 'select.rank'"),
        ({'lora.rank': 'four'}, r"lora.rank does not take 'four'"),
    ],
)
def test_fields_that_are_not_there_are_named(config, changes, message):
    with pytest.raises(ValueError, match=message):
        rows_of(config, changes)


def test_wrong_sweeps_are_refused_before_anything_runs(config, tmp_path):
    module = ModuleType('lonely')
    with pytest.raises(ValueError, match=r"no sweep 'rank' in lonely: write def sweep_rank\(add\)"):
        expand(module, 'rank', config)
    with pytest.raises(ValueError, match='adds no row'):
        rows_of(config)
    with pytest.raises(ValueError, match='rows 000 and 001 are the same'):
        rows_of(config, {'seed': 0}, {'seed': 0})
    with pytest.raises(ValueError, match=r"row 001 \{'lora.rank': 99\}: rank 99 is larger"):
        run(rows_of(config, {'seed': 0}, {'lora.rank': 99}), tmp_path / 'a')
    assert not (tmp_path / 'a').exists()
    with pytest.raises(ValueError, match='leave config.mesh at 1'):
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
        ValueError, match='group 000 of .* holds row 001, which the sweep no longer'
    ):
        run(rows[:1], tmp_path / 'a')
    with pytest.raises(ValueError, match='group 000 of .* takes .* MiB, more than the'):
        run(rows, tmp_path / 'a', memory=mine.memory - 1)


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


def test_halving_stops_the_worst_and_compacts_the_group(config, alone, tmp_path, monkeypatch):
    """Rungs after 1 and 2 scores; 4, 2 and 1 rows; killed between the results of the first."""
    rows = rows_of(config, *RATES)
    halving, sizes = Halving(2, 'validation/loss'), []
    together = program.Together.__init__

    def noted(self, members, *others):
        sizes.append(len(members))
        together(self, members, *others)

    monkeypatch.setattr(program.Together, '__init__', noted)
    with monkeypatch.context() as patch:
        patch.setattr(result, 'write_whole', after_the_first_result())
        with pytest.raises(KeyboardInterrupt):
            run(rows, tmp_path, halving)
    lines = run(rows, tmp_path, halving)
    assert sizes == [4, 4, 2, 1]
    steps = sorted((line['steps'], line['status']) for line in lines)
    assert steps == [(2, 'pruned'), (2, 'pruned'), (4, 'pruned'), (8, 'done')]
    logs = [without_rates(tmp_path / 'rows' / row.name) for row in rows]
    for number, keep in ((2, 2), (4, 1)):
        scores = {
            name: next(
                p['validation/loss'] for p in log if p['step'] == number and 'validation/loss' in p
            )
            for name, log in enumerate(logs)
            if log[-1]['step'] >= number
        }
        best = sorted(scores, key=scores.__getitem__)[:keep]
        assert {name for name, log in enumerate(logs) if log[-1]['step'] > number} == set(best)
    survivor = next(line['row'] for line in lines if line['status'] == 'done')
    assert_as_alone(rows[int(survivor)], tmp_path, alone)


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
