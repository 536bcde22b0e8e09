"""Sweeps that are stopped, and rows that leave: no row is lost, and none hurts another."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from peftjax.interop.folder.read import read_arrays
from peftjax.sweep import program, work
from peftjax.sweep.pruning import Halving
from peftjax.train import artifacts as result
from tests.tiny_sweeps import FOUR, RATES, TWO, assert_as_alone, rows_of, run
from tests.whole_runs import without_rates

pytestmark = pytest.mark.usefixtures('rows_are_traced_once')


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
        folders = [folder / 'runs' / row.name for folder in (whole, tmp_path / 'broken')]
        mine, theirs = map(without_rates, folders)
        assert mine == theirs
        arrays = [read_arrays(folder / 'adapter_last').adapter for folder in folders]
        for one, other in zip(*(each.values() for each in arrays), strict=True):
            np.testing.assert_array_equal(one, other)
    # What is done is not done again.
    monkeypatch.setattr(work, 'train_group', lambda *_: pytest.fail('trained again'))
    assert run(rows, tmp_path / 'broken') == lines


@pytest.mark.slow
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
        assert line['status'] == lines[int(line['run'])]['status']
    table = pq.read_table(tmp_path / 'sweep/results.parquet')
    assert table['config.lr'].to_pylist() == [1e-2, 3e-3, 1e30, 3e30]
    assert table['test/accuracy'].to_pylist()[0] == lines[0]['test/accuracy']
    assert json.loads(table['config'].to_pylist()[2])['lr'] == 1e30


def test_halving_stops_the_worst_and_compacts_the_group(config, alone, tmp_path, monkeypatch):
    """Rungs after 1 and 2 scores; 4, 2 and 1 rows; killed between the results of the first."""
    rows = rows_of(config, *RATES)
    halving, sizes = Halving(2, 'validation/loss'), []
    together = program._Program.__init__

    def noted(self, members, *others):
        sizes.append(len(members))
        together(self, members, *others)

    monkeypatch.setattr(program._Program, '__init__', noted)
    with monkeypatch.context() as patch:
        patch.setattr(result, 'write_whole', after_the_first_result())
        with pytest.raises(KeyboardInterrupt):
            run(rows, tmp_path, halving)
    lines = run(rows, tmp_path, halving)
    assert sizes == [4, 4, 2, 1]
    steps = sorted((line['steps'], line['status']) for line in lines)
    assert steps == [(2, 'pruned'), (2, 'pruned'), (4, 'pruned'), (8, 'done')]
    logs = [without_rates(tmp_path / 'runs' / row.name) for row in rows]
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
    survivor = next(line['run'] for line in lines if line['status'] == 'done')
    assert_as_alone(rows[int(survivor)], tmp_path, alone)
