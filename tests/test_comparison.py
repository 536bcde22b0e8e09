"""Comparing methods: one protocol, a tuned rate, several seeds; a run that was cut goes on."""

import dataclasses
import errno
import json
import os

import pytest
from rich.console import Console

from experiments.studies.methods import scores
from experiments.studies.methods.compare import Protocol, compare
from experiments.studies.results import Results, best_exponent, read
from peftjax.train.settings import read_settings
from tests import tiny_runs

QUIET = Console(quiet=True)


def _row(method, seed, accuracy, trainable):
    return {
        'method': method,
        'stage': 'final',
        'rate': 1e-3,
        'seed': seed,
        'trainable': trainable,
        'base': 1000,
        'test/accuracy': accuracy,
        'test/loss': 0.5,
    }


@dataclasses.dataclass(frozen=True)
class Seeds:
    """A protocol."""

    seeds: int


ROWS = [
    _row('full', 0, 0.8, 1000),
    _row('full', 1, 0.9, 1000),
    _row('lora', 0, 0.9, 10),
    _row('lora', 1, 0.9, 10),
    {'method': 'lora', 'stage': 'tune'},
]


@pytest.mark.parametrize('least', [-12, -9, -7, -5, -2])
def test_the_best_rate_is_found_outside_of_the_grid_too(least):
    tried = []

    def loss(exponent):
        tried.append(exponent)
        return abs(exponent - least)

    assert best_exponent(loss, (-8, -7, -6)) == least
    assert len(tried) == len(set(tried))


def test_scores_are_means_and_deviations_over_seeds_the_best_first(tmp_path):
    lora, full = scores.scores(ROWS)
    assert (lora.method, lora.mean, lora.deviation, lora.percent) == ('lora', 0.9, 0.0, 1.0)
    assert full.mean == pytest.approx(0.85)
    assert full.deviation == pytest.approx(0.0707, abs=1e-4)
    assert '| full | 1,000 | 100 | 0.001 | 0.850 ± 0.071 | 0.500 | 2 |' in scores.table(ROWS)
    scores.draw(ROWS, tmp_path / 'picture.png')
    assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')


def test_a_comparison_that_was_cut_short_goes_on_and_ends_the_same(tmp_path):
    protocol = Protocol(
        seeds=2, length=8, train=32, validation=16, test=32, batch_size=8, rates=(-3, -2)
    )
    configs = {'lora': read_settings(tiny_runs.film_reviews(tmp_path))}
    rows = compare(configs, protocol, tmp_path / 'whole', QUIET)
    finals = [row for row in rows if row['stage'] == 'final']
    assert [row['seed'] for row in finals] == [0, 1]
    assert len({row['exponent'] for row in finals}) == 1
    tuned = [row for row in rows if row['stage'] == 'tune']
    best = min(tuned, key=lambda row: row['validation/loss'])
    assert best['exponent'] == finals[0]['exponent']
    assert finals[0]['test/loss'] != finals[1]['test/loss']

    # The last line was cut in the middle, and one was never written.
    text = (tmp_path / 'whole/results.jsonl').read_text()
    (tmp_path / 'cut').mkdir()
    (tmp_path / 'cut/results.jsonl').write_text(text[: text.rindex('{"method"') - 10])
    again = compare(configs, protocol, tmp_path / 'cut', QUIET)
    assert [_without_time(row) for row in again] == [_without_time(row) for row in rows]
    read = (tmp_path / 'cut/results.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in read] == again

    with pytest.raises(ValueError, match='another folder'):
        compare(configs, Protocol(seeds=1), tmp_path / 'cut', QUIET)


def test_a_disk_that_fails_leaves_the_results_as_they_were(tmp_path, monkeypatch):
    results = Results(tmp_path, Seeds(2))
    for row in ROWS:
        results.add(row)
    picture = tmp_path / 'comparison.png'
    scores.draw(ROWS, picture)
    with (tmp_path / 'results.jsonl').open('a') as file:
        file.write('{"cut')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def failing(handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, 'fsync', failing)
    for write in (
        lambda: Results(tmp_path, Seeds(2)),
        lambda: read(tmp_path / 'results.jsonl'),
        lambda: scores.draw(ROWS[:2], picture),
    ):
        with pytest.raises(OSError, match='Input/output'):
            write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    assert Results(tmp_path, Seeds(2)).rows == ROWS


def _without_time(row):
    return {name: value for name, value in row.items() if name != 'seconds'}
