"""Intervals over seeds, held to SciPy's tests and to numbers from tables."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from peftjax.sweep.board import settings_table
from peftjax.sweep.intervals import interval, settings, t_quantile
from peftjax.sweep.names import legend, setting_names

LR = ['config.lr', 'config.seed']


def line(lr, seed, score, **more):
    fields = {'config.lr': lr, 'config.seed': seed, 'seed': seed, 'method': 'lora'}
    return {**fields, 'status': 'done', 'validation/f1': score, 'tflop': 1.0, **more}


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_the_interval_is_that_of_the_one_sample_t_test(values):
    found, n = interval(values), len(values)
    if np.std(values) < 1e-6:
        return  # SciPy divides by the deviation
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.low == pytest.approx(low, abs=1e-9) and found.high == pytest.approx(high, abs=1e-9)
    assert found.n == n and found.mean == pytest.approx(np.mean(values))


def test_quantiles_are_those_of_printed_tables():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}
    assert {n: round(t_quantile(n), 3) for n in table} == table


def test_one_value_has_no_interval():
    found = interval([0.5])
    assert found.mean == 0.5 and all(map(math.isnan, (found.deviation, found.low, found.high)))


def test_differences_are_paired_over_shared_seeds():
    """By hand: seeds 0, 1, 2 differ by 0.1, 0.2, 0.3; seed 7 has no partner."""
    reference = [line(1.0, seed, 0.9 + 0.01 * seed) for seed in range(3)]
    other = [line(2.0, s, 0.9 + 0.01 * s - 0.1 * (s + 1)) for s in range(3)] + [line(2.0, 7, 0.0)]
    best, worse = settings(other + reference, LR, 'validation/f1')
    assert (best.name, worse.name) == ('lr=1', 'lr=2') and best.difference is None
    difference = worse.difference
    assert difference is not None and difference.n == 3 and worse.score.n == 4
    assert difference.mean == pytest.approx(-0.2)
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert difference.high == pytest.approx(-0.2 + half, abs=1e-6)
    paired = stats.ttest_rel(
        [each['validation/f1'] for each in other[:3]], [r['validation/f1'] for r in reference]
    ).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx(tuple(paired))


def test_a_reference_can_be_chosen_and_small_can_be_good():
    lines = [line(lr, seed, lr + seed) for lr in (1.0, 2.0, 3.0) for seed in range(2)]
    found = settings(lines, LR, 'validation/f1', smaller=True, reference='lr=2')
    assert [each.name for each in found] == ['lr=1', 'lr=2', 'lr=3']
    differences = [each.difference and each.difference.mean for each in found]
    assert differences == [-1.0, None, 1.0]


def test_only_runs_that_ended_with_a_number_count():
    lines = [line(1.0, 0, 0.5), line(1.0, 1, math.nan), line(1.0, 2, 0.9, status='pruned')]
    lines += [line(2.0, 0, 0.4, status='diverged')]
    (found,) = settings(lines, LR, 'validation/f1')
    assert (found.score.mean, found.score.n, found.begun) == (0.5, 1, 3)


def test_settings_that_look_alike_stay_apart():
    """Rates that a search drew, equal in four digits."""
    lines = [line(0.12345678, 0, 0.1), line(0.12345679, 0, 0.9)]
    names = setting_names(lines, LR)
    assert names == ['lr=0.12345678', 'lr=0.12345679']
    assert [each.score.mean for each in settings(lines, LR, 'validation/f1')] == [0.9, 0.1]


def test_methods_are_names_and_missing_fields_are_left_out():
    fields = ['config.lora.rank', 'config.methods']
    lines = [
        {'config.methods': ['lora', 'select'], 'config.lora.rank': 4, 'method': 'lora + select'},
        {'config.methods': ['ia3'], 'method': 'ia3'},
    ]
    assert setting_names(lines, fields) == ['lora + select · lora.rank=4', 'ia3']
    assert legend(lines, fields) == ('method', ['lora + select', 'ia3'])
    many = [{'method': 'lora', 'config.lr': rate} for rate in np.linspace(0, 1, 20)]
    assert legend(many, ['config.lr']) == ('method', ['lora'] * 20)


def test_the_terminal_shows_settings_whole_in_eighty_columns():
    lines = [line(lr, seed, 0.9 - 0.1 * lr + 0.01 * seed) for lr in (1.0, 2.0) for seed in range(3)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(settings_table(settings(lines, LR, 'validation/f1'), 'validation/f1'))
    text = console.export_text()
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert f'lr=1    │ 0.8100 ± {half:.4f} │                  │    3' in text
    assert f'lr=2    │ 0.7100 ± {half:.4f} │ -0.1000 ± 0.0000 │    3' in text
