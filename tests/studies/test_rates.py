"""The study of rates: a tiny one from end to end, its parabolas, and its claims."""

import dataclasses
import math

import pytest

from experiments.studies import rates, rates_report
from experiments.studies.results import read
from tests.studies.tiny_questions import encoder, questions


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp('rates')
    protocol = dataclasses.replace(rates.TINY, source=encoder(folder), questions=questions(folder))
    rates.run(folder / 'study', protocol)
    return protocol, folder / 'study', read(folder / 'study' / 'results.jsonl')


def test_the_rates_of_every_method_surround_its_best_one(tiny):
    protocol, _, rows = tiny
    found = rates_report.losses(rows)
    assert list(found) == ['lora 1', 'full']
    for places in found.values():
        best = min(places, key=lambda place: places[place].mean())
        assert min(places) <= best - rates.REACH and best + rates.REACH <= max(places)
        assert all(len(each) == protocol.seeds for each in places.values())


def test_a_study_that_is_complete_trains_nothing(tiny):
    protocol, folder, _ = tiny
    before = (folder / 'results.jsonl').read_bytes()
    rates.run(folder, protocol)
    assert (folder / 'results.jsonl').read_bytes() == before


def test_the_report_of_a_tiny_study_has_every_method(tiny, tmp_path):
    rows = tiny[2]
    said = rates_report.text(rows)
    assert said.count('| LoRA, rank 1 |') == said.count('| full fine-tuning |') == 1
    rates_report.draw(rows, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


def _rows(best, seeds=3):
    """Losses that are parabolas of the place with their vertices at `best`, shifted by the seed."""
    return [
        {
            'method': method,
            'quarters': place,
            'seed': seed,
            'trainable': 10,
            'validation/loss': math.exp(0.1 * (place - vertex - 0.1 * seed) ** 2),
        }
        for method, vertex in best.items()
        for place in range(round(vertex) - 3, round(vertex) + 4)
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ('best', 'verdicts'),
    [
        ({'lora 1': -8, 'lora 8': -8, 'full': -12}, ['confirmed', 'confirmed']),
        ({'lora 1': -8, 'lora 8': -6, 'full': -8}, ['contradicted', 'contradicted']),
    ],
)
def test_verdicts_follow_from_the_vertices(best, verdicts):
    rows = _rows(best)
    assert rates_report.best(rates_report.losses(rows))['full'] == pytest.approx(
        [best['full'] + 0.1 * seed for seed in range(3)]
    )
    assert [each.verdict for each in rates_report.claims(rows)] == verdicts


def test_seeds_without_a_minimum_decide_nothing():
    rows = _rows({'lora 1': -8, 'lora 8': -8, 'full': -12})
    for row in rows:
        if row['method'] == 'full' and row['seed'] == 0:
            row['validation/loss'] = math.exp(-0.001 * (row['quarters'] + 12) ** 2)
    first, second = rates_report.claims(rows)
    assert first.verdict == 'not decidable here' and second.verdict == 'confirmed'
    assert '1 of 3 seeds have none' in rates_report.text(rows)


def test_rates_that_are_missing_are_an_error():
    rows = [row for row in _rows({'lora 1': -8, 'full': -12}) if row['quarters'] != -10]
    with pytest.raises(ValueError, match='to its end'):
        rates_report.losses(rows)
