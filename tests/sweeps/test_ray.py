"""A sweep's groups as tasks of a Ray cluster on this machine."""

import sys

import numpy as np
import pytest
from rich.console import Console

from peftjax.interop.folder.read import read_arrays
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.on_ray import OnRay
from peftjax.sweep.pruning import Halving, nobody
from peftjax.sweep.run import Sweep
from peftjax.train.checkpoints import CheckpointsError
from tests import tiny_runs
from tests.tiny_sweeps import rows_of
from tests.whole_runs import without_rates

LOCAL = OnRay('local')


def run(rows, folder, prune=nobody, **options):
    sweep = Sweep(SweepFolder(folder), Console(quiet=True), most=2, **options)
    sweep.run(rows, prune)
    return sweep.finish(rows)


@pytest.mark.slow
def test_tasks_do_what_one_process_does(tmp_path):
    """Two groups, halved; the folder is whole then, and errors of tasks are as those here."""
    pytest.importorskip('ray')
    config = tiny_runs.film_reviews(tmp_path)
    config.duration, config.eval_every = '4 steps', '2 steps'
    rows = rows_of(config, *({'seed': n, 'lr': 1e-3 * (1 + n)} for n in range(4)))
    halving = Halving(2, 'validation/loss')
    here, ray = (
        run(rows, tmp_path / name, halving, **work)
        for name, work in (('here', {}), ('ray', {'work': LOCAL}))
    )
    assert sorted(line['status'] for line in here) == ['done', 'done', 'pruned', 'pruned']
    assert [line['status'] for line in ray] == [line['status'] for line in here]
    for row, line in zip(rows, here, strict=True):
        folders = [tmp_path / name / 'runs' / row.name for name in ('here', 'ray')]
        assert without_rates(folders[0]) == without_rates(folders[1])
        if line['status'] == 'done':
            arrays = [read_arrays(folder / 'adapter_last').adapter for folder in folders]
            for one, other in zip(*(each.values() for each in arrays), strict=True):
                np.testing.assert_array_equal(one, other)
    assert run(rows, tmp_path / 'ray', halving, work=LOCAL) == ray
    with pytest.raises(
        ValueError, match='a task takes 1 GPU, but the cluster has 0: set --ray-gpus'
    ):
        run(rows, tmp_path / 'gpu', work=LOCAL._replace(gpus=1.0))
    # What a task ends with is what the program ends with.
    (tmp_path / 'own/groups/000').mkdir(parents=True)
    (tmp_path / 'own/groups/000/checkpoints').write_text('no folder', encoding='utf-8')
    with pytest.raises(CheckpointsError, match='could not be written'):
        run(rows, tmp_path / 'own', work=LOCAL)


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ValueError, match=r"pip install 'peftjax\[ray\]'"):
        LOCAL([], SweepFolder(tmp_path), nobody, lambda *_: None, False)
