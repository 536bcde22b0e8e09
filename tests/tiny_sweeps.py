"""Sweeps of tiny runs, and what holds of a row whatever it ran beside."""

import json
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

from peftjax.interop.folder.read import read_arrays
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.pruning import nobody
from peftjax.sweep.rows import expand
from peftjax.sweep.run import Sweep
from peftjax.train.settings import read_settings
from tests.whole_runs import without_rates

FOUR = (
    {'seed': 0, 'lr': 1e-3},
    {'seed': 1, 'lr': 1e-2, 'lora.rank': 2, 'lora.alpha': 8.0},
    {'seed': 0, 'lr': 3e-3, 'lora.dropout': 0.3, 'duration': '5 steps'},
    {'seed': 2, 'lr': 1e-3, 'lora.rank': 1, 'warmup': 0.5, 'clip_norm': 0.1},
)

TWO = FOUR[:2]

RATES = tuple({'lr': rate} for rate in (3e-3, 1e-2, 1e-5, 3e-2))


def rows_of(config, *changes):
    module = ModuleType('config_of_a_test')
    vars(module)['sweep_all'] = lambda add: [add(**each) for each in changes]
    return expand(module, 'all', read_settings(config))


def run(rows, folder, prune=nobody, **options):
    sweep = Sweep(SweepFolder(folder), Console(quiet=True), **options)
    sweep.run(rows, prune)
    return sweep.folder.results()


def assert_as_alone(run, sweep, alone):
    """The run's folder holds what a run by itself writes, in the same numbers up to rounding."""
    folder, solo = sweep / 'runs' / run.name, alone(run.settings)
    mine, theirs = without_rates(folder), without_rates(solo)
    assert [sorted(line) for line in mine] == [sorted(line) for line in theirs]
    for one, other in zip(mine, theirs, strict=True):
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), (name, one['step'])
    for kept in ('adapter', 'adapter_last'):
        arrays = [read_arrays(where / kept).adapter for where in (folder, solo)]
        assert list(arrays[0]) == list(arrays[1])
        for one, other in zip(*(each.values() for each in arrays), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    found, own = (json.loads((where / 'result.json').read_text()) for where in (folder, solo))
    assert set(own) == set(found) and found['status'] == 'done'
    for name in ('trainable', 'base', 'best_step', 'steps', 'adapter_peft'):
        assert found[name] == own[name]
