"""The verdicts of the studies of the intrinsic dimension, on made-up rows."""

import math
from collections.abc import Mapping

import pytest

from experiments.studies.intrinsic import images, images_report, language_report


def _made_up(factor: dict[tuple[str, str, str], float], spread: float = 0.01) -> list[dict]:
    """Curves that cross the line at 100 times a factor, with a spread over seeds."""
    rows: list[dict] = []
    nets_ = {'fc100': 1e5, 'fc200': 2e5, 'fc400': 5e5, 'lenet': 4e4}
    for key in images.Protocol().curves:
        net, projection, data = key[:3]
        score = f'{images_report.scored_split(data)}/accuracy'
        about = {'net': net, 'data': data, 'stage': 'final', 'rate': 0.01}
        for seed in range(5):
            direct = {**about, 'projection': 'none', 'dimension': 0, 'seed': seed, score: 0.9}
            rows.append({**direct, 'trained': int(nets_[net])})
            place = 100 * factor.get((net, projection, data), 1.0) * math.exp(spread * seed)
            for d in (3, 10, 30, 100, 300, 1000, 3000, 10_000):
                accuracy = min(0.9, max(0.1, 0.81 + 0.1 * math.log(d / place)))
                row = {**about, 'projection': projection, 'dimension': d, 'seed': seed}
                rows.append({**row, score: accuracy, 'trained': d})
    return rows


@pytest.mark.parametrize(
    ('factor', 'spread', 'verdicts'),
    [
        (
            {('lenet', 'fastfood', 'pixels'): 3.0, ('fc200', 'fastfood', 'labels'): 30.0},
            0.01,
            ['confirmed'] * 6,
        ),
        (
            {
                ('fc400', 'fastfood', 'true'): 3.0,
                ('fc200', 'sparse', 'true'): 3.0,
                ('fc200', 'fastfood', 'pixels'): 3.0,
                ('lenet', 'fastfood', 'pixels'): 0.5,
                ('fc200', 'fastfood', 'labels'): 5.0,
                ('fc200', 'fastfood', 'true'): 1.0,
            },
            0.01,
            ['confirmed', *['contradicted'] * 5],
        ),
    ],
)
def test_verdicts_on_images_follow_the_intervals(factor, spread, verdicts):
    found = images_report.claims(_made_up(factor, spread))
    assert [each.verdict for each in found] == verdicts


def test_a_wide_interval_decides_nothing():
    rows = _made_up({('lenet', 'fastfood', 'pixels'): 1.2})
    for row in rows:  # the two seeds of a net disagree
        if row['net'] == 'lenet' and row['data'] == 'pixels' and row['dimension']:
            row['test/accuracy'] += 0.1 * (-1) ** row['seed']
    assert images_report.claims(rows)[4].verdict == 'not decidable here'


@pytest.mark.parametrize(
    ('unreached', 'verdict'), [('pixels', 'confirmed'), ('true', 'not decidable here')]
)
def test_a_bound_from_below_confirms_in_one_direction_alone(unreached, verdict):
    rows = _made_up({('lenet', 'fastfood', 'pixels'): 3.0})
    for row in rows:  # no dimension is enough; the greatest one counts
        if row['net'] == 'lenet' and row['data'] == unreached and row['dimension']:
            row['test/accuracy'] = 0.5
            row['dimension'] = max(1, row['dimension'] // (100 if unreached == 'true' else 1))
    claim = images_report.claims(rows)[4]
    assert claim.verdict == verdict
    assert ('≥ ' if unreached == 'pixels' else '≤ ') in claim.effect


def _language(own: Mapping[str, float]) -> list[dict]:
    rows: list[dict] = []
    curves = [('small', str(n), 'SAID') for n in (0, 10, 100)]
    curves += [('small', '100', 'DID')]
    curves += [('minilm', w, 'SAID') for w in ('pretrained', 'permuted', 'random')]
    curves += [('minilm', 'pretrained', 'DID')]
    for model, weights, kind in curves:
        for seed in range(5):
            about = {'model': model, 'weights': weights, 'stage': 'final', 'seed': seed}
            about |= {'rate': 0.01}
            direct = {'kind': 'direct', 'dimension': 0, 'test/accuracy': 0.9, 'trained': 10**7}
            rows.append({**about, **direct})
            place = own[f'{weights} {kind}'] * math.exp(0.01 * seed)
            for d in (30, 100, 300, 1000, 3000):
                accuracy = 0.81 + 0.1 * math.log(d / place)
                row = {'kind': kind, 'dimension': d, 'test/accuracy': accuracy, 'trained': d}
                rows.append({**about, **row})
    return rows


def test_runs_of_two_rates_on_one_curve_are_refused():
    names = ('0 SAID', '10 SAID', '100 SAID', '100 DID', 'pretrained SAID', 'pretrained DID')
    own: dict[str, float] = dict.fromkeys((*names, 'permuted SAID', 'random SAID'), 300)
    rows = _language(own)
    rows.append({**rows[-1], 'rate': 0.03})
    with pytest.raises(ValueError, match=r'minilm, pretrained, DID have the rates \[0.01, 0.03\]'):
        language_report.claims(rows)


def test_verdicts_on_language_follow_the_intervals():
    base = {'0 SAID': 1000, '10 SAID': 500, '100 SAID': 250, '100 DID': 400, 'pretrained SAID': 200}
    base |= {'permuted SAID': 900, 'random SAID': 800, 'pretrained DID': 320}
    found = language_report.claims(_language(base))
    assert [each.verdict for each in found] == ['confirmed'] * 6
    other = {'0 SAID': 250, '10 SAID': 500, '100 SAID': 1000, '100 DID': 400}
    other |= {'pretrained SAID': 2500, 'permuted SAID': 900, 'random SAID': 800}
    other |= {'pretrained DID': 1000}
    found = language_report.claims(_language(other))
    assert [each.verdict for each in found] == ['confirmed', *['contradicted'] * 5]
    text = language_report.text(_language(base))
    assert '| minilm | permuted | SAID |' in text
