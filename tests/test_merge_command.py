"""`peftjax merge` of several adapters."""

import jax
import numpy as np
import pytest

import peftjax
from peftjax import cli, merging
from tests.deltas import far
from tests.oracle.cases import GOLDEN

BASE = str(GOLDEN / 'llama' / 'base')
LORA, DORA = (str(GOLDEN / 'llama' / name) for name in ('lora', 'dora'))


def _deltas(model):
    found = [peftjax.load_adapter(each, model) for each in (LORA, DORA)]
    return [merging.delta(model, *each[:3]) for each in found]


@pytest.mark.parametrize(
    ('flags', 'rule'),
    [
        ([], merging.average),
        (['--weights', '0.3,0.7'], lambda deltas: merging.average(deltas, [0.3, 0.7])),
        (['--rule', 'sum', '--weights=-1'], lambda deltas: merging.weighted_sum(deltas, -1.0)),
        (['--rule', 'ties', '--density', '0.3'], lambda d: merging.ties(d, density=0.3)),
        (
            ['--rule', 'dare', '--density', '0.5', '--seed', '3'],
            lambda deltas: merging.dare(deltas, jax.random.key(3), density=0.5),
        ),
    ],
)
def test_several_adapters_are_merged_by_a_rule(flags, rule, tmp_path):
    out = tmp_path / 'merged'
    assert cli.main(['merge', BASE, LORA, DORA, str(out), *flags]) == 0
    model = peftjax.load(BASE, scan=False)
    expected = merging.apply_delta(model.params, rule(_deltas(model)))
    assert far(peftjax.load(out, scan=False).params, expected) < 1e-6


def test_the_result_can_be_a_lora(tmp_path):
    out = tmp_path / 'low'
    command = ['merge', BASE, LORA, LORA, str(out), '--core', '--rule', 'average', '--rank', '4']
    assert cli.main(command) == 0
    model = peftjax.load(BASE, scan=False)
    loaded = [peftjax.load_adapter(each, model) for each in (LORA, out)]
    first, second = (merging.dense(merging.delta(model, *each[:3])) for each in loaded)
    assert far(second, first) < 1e-5
    assert np.isfinite(far(second, first))


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--rule', 'sce', '--weights', '1'], '--rule sce takes no --weights'),
        (['--rule', 'dare'], '--rule dare needs --density'),
        (['--without', 'nothing'], 'matches no leaf of the delta'),
        (['--rule', 'median'], 'invalid choice'),
    ],
)
def test_a_merge_that_cannot_be_is_refused(flags, message, tmp_path, capsys):
    assert cli.main(['merge', BASE, LORA, LORA, str(tmp_path / 'out'), *flags]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('scan', [True, False])
def test_a_lora_of_several_ranks_survives_its_file(scan, tmp_path):
    """Each leaf has its rank, and a scale of 1: the file says so by patterns."""
    model = peftjax.load(BASE, scan=scan)
    merged = merging.average(_deltas(model))
    kept = {path: 1 + i % 3 for i, path in enumerate(merged)}
    merged = {
        path: merging.to_lora({path: change}, model, rank=kept[path])
        for path, change in merged.items()
    }
    merged = {path: merging.delta(model, *found[:3])[path] for path, found in merged.items()}
    found = merging.to_lora(merged, model)
    assert {path: entry['a'].shape[-1] for path, entry in found.adapter.items()} == kept
    peftjax.save_adapter(tmp_path, model, found.transform, found.adapter)
    loaded = peftjax.load_adapter(tmp_path, model)
    mine = merging.dense(merging.delta(model, *found[:3]))
    theirs = merging.dense(merging.delta(model, *loaded[:3]))
    assert far(theirs, mine) < 1e-6
