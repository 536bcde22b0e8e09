"""The study of costs: a tiny one from end to end, and its claims on made-up rows."""

import math

import pytest

from experiments.studies import cost, cost_report
from experiments.studies.results import read


def test_a_tiny_study_ends_and_is_gone_on_with(tmp_path, monkeypatch):
    rows = cost.run(tmp_path, cost.TINY)
    monkeypatch.setattr(cost, '_plan', lambda *args: pytest.fail('it plans again'))
    monkeypatch.setattr(cost, '_programs', lambda *args: pytest.fail('it measures again'))
    assert cost.run(tmp_path, cost.TINY) == rows == read(tmp_path / 'results.jsonl')
    full, lora = (cost_report.plans(rows)[name] for name in ('full', 'lora'))
    assert full['trainable'] > 6.7e9 and full['weights'] == 0
    assert lora['weights'] == pytest.approx(2 * full['trainable'], rel=1e-3)
    assert lora['optimizer'] == pytest.approx(8 * lora['trainable'], rel=1e-3)
    packed = cost_report.plans(rows)['lora nf4']
    assert packed['weights'] < 0.35 * lora['weights'] and packed['trainable'] == lora['trainable']
    found = cost_report.costs(rows)
    assert list(found) == list(cost.TINY.served)
    assert all(
        each.seeds == cost.TINY.turns for shapes in found.values() for each in shapes.values()
    )
    cost_report.draw(rows, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


def test_a_compiler_that_is_not_there_is_left_out(tmp_path, monkeypatch, capsys):
    def absent(*args, **kwargs):
        raise ValueError('libtpu is not installed')

    monkeypatch.setattr(cost, 'mesh_for', absent)
    protocol = cost.Protocol(dense=(), packed=(), shapes=(), compiled=('lora',))
    assert cost.run(tmp_path, protocol) == []
    assert 'v5e:2x4 is skipped: libtpu is not installed' in capsys.readouterr().out


def _rows(ratios):
    plan = {'stage': 'plan', 'trainable': 1, 'adapter': 0, 'gradients': 0}
    plan |= {'optimizer': 0, 'activations': 0}
    sizes = {'full': 50e9, 'lora': 14e9, 'lora nf4': 4e9}
    rows = [{**plan, 'method': name, 'weights': size} for name, size in sizes.items()]
    for batch in (1, 2, 3):
        for turn in range(4):
            about = {'stage': 'latency', 'batch': batch, 'length': 8, 'turn': turn}
            grown = math.exp(0.001 * (turn + batch))
            rows.append({**about, 'ratios': {name: each * grown for name, each in ratios.items()}})
    return rows


def test_verdicts_follow_the_intervals():
    merged = {'lora merged': 1.0, 'lora all merged': 1.0}
    found = cost_report.claims(_rows({**merged, 'bottlenecks': 1.3, 'lora all': 1.4}))
    assert [each.verdict for each in found] == ['confirmed'] * 7
    merged = {'lora merged': 1.2, 'lora all merged': 0.8}
    found = cost_report.claims(_rows({**merged, 'bottlenecks': 0.9, 'lora all': 0.9}))
    assert [each.verdict for each in found[3:]] == ['contradicted'] * 4
    assert '| full | 1 | 50.00 |' in cost_report.text(_rows({**merged, 'lora all': 1.0}))
