"""The merging study: its tables, what validation chooses, its verdicts, and a whole tiny study."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.studies.claims import interval, verdict
from experiments.studies.merging import report
from experiments.studies.merging.merge import Merger
from experiments.studies.merging.rules import CORE, POINTS, WEIGHTS, Point
from experiments.studies.merging.runs import METHODS, Bench, Protocol
from experiments.studies.merging.study import study
from experiments.studies.merging.tables import Example, hashed
from tests.tiny_runs import WORDS, checkpoint

TASKS = ('praise', 'subject')


def _table(words):
    """Texts of three words; the first decides the class."""
    rng = np.random.default_rng(0)
    return {
        split: [
            Example(' '.join([word, *rng.choice(WORDS[8:], 2)]), label)
            for label, kinds in words.items()
            for word in kinds
            for _ in range(16)
        ]
        for split in ('train', 'validation', 'test')
    }


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp('merging')
    tables = {
        'praise': _table({'good': WORDS[:4], 'bad': WORDS[4:8]}),
        'subject': _table({'art': ['film', 'plot'], 'people': ['cast'], 'place': ['scene']}),
    }
    protocol = Protocol(
        source=str(checkpoint(folder / 'bert', 'tiny_bert')),
        seeds=1,
        rates=(-5, -4, -3),
        steps=4,
        batch_size=8,
        lengths=(8,),
        validation=16,
        test=16,
        fisher_examples=8,
        moment_examples=64,
    )
    return tables, protocol, folder / 'study', study(tables, protocol, folder / 'study')


def test_texts_of_one_spelling_are_in_one_split_and_there_once():
    texts = [f'Text  {n // 2}' if n % 2 else f'text {n // 2}' for n in range(400)]
    table = hashed(Example(text, 'a') for text in texts)
    found = [each.text for rows in table.values() for each in rows]
    assert sorted(found) == sorted(texts[::2])
    assert all(len(rows) > 10 for rows in table.values())


@pytest.mark.slow
def test_a_tiny_study_scores_every_rule_with_every_seed(tiny):
    _, protocol, folder, rows = tiny
    merged = [row for row in rows if row['stage'] == 'merged']
    assert len({json.dumps({**row, 'seconds': 0}) for row in merged}) == len(merged)
    for method in METHODS:
        points = len(POINTS) + (len(CORE) if method == 'lora' else 0)
        for seed in range(protocol.seeds):
            mine = [row for row in merged if (row['method'], row['seed']) == (method, seed)]
            assert len([row for row in mine if row['split'] == 'validation']) == points
            rules = {row['rule'] for row in mine}
            tested = [row for row in mine if row['split'] == 'test']
            assert len(tested) == len(WEIGHTS) + len(rules) - 1
            assert all(
                row['mean'] == pytest.approx(np.mean([row[t] for t in TASKS])) for row in mine
            )
    assert (folder / 'merging_study.png').read_bytes().startswith(b'\x89PNG')
    assert '| RegMean |' in (folder / 'results.md').read_text()
    assert '| RegMean is above task arithmetic |' in (folder / 'verdicts.md').read_text()


@pytest.mark.slow
def test_a_study_is_gone_on_with_and_no_other_is(tiny):
    tables, protocol, folder, rows = tiny
    before = (folder / 'results.jsonl').read_bytes()
    assert study(tables, protocol, folder) == rows
    assert (folder / 'results.jsonl').read_bytes() == before
    with pytest.raises(ValueError, match='differs from the protocol'):
        study(tables, dataclasses.replace(protocol, steps=5), folder)


@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
def test_one_model_merged_with_nothing_scores_as_by_itself(tiny, method):
    tables, protocol, folder, rows = tiny
    bench = Bench('praise', method, tables['praise'], protocol, folder)
    merger = Merger({'praise': bench}, folder, seed=0)
    wanted = {'stage': 'individual', 'method': method, 'task': 'praise', 'seed': 0}
    (alone,) = (row for row in rows if wanted.items() <= row.items())
    for point in (Point('task arithmetic', 1.0), Point('average'), Point('dare', 1.0, 1.0)):
        assert merger.score(point, 'test') == {'praise': alone['test/accuracy']}


def _row(rule, seed, split, weight, mean):
    point = {'rule': rule, 'weight': weight, 'kept': None, 'split': split}
    return {'stage': 'merged', 'method': 'lora', 'seed': seed, **point, 'a': mean, 'mean': mean}


ROWS = [
    {'stage': 'individual', 'method': 'lora', 'task': 'a', 'seed': 0, 'test/accuracy': 0.9},
    _row('ties', 0, 'validation', 1.0, 0.7),
    _row('ties', 0, 'validation', 2.0, 0.8),
    _row('ties', 0, 'test', 1.0, 0.75),
    _row('ties', 0, 'test', 2.0, 0.65),
]


def test_validation_chooses_and_not_test():
    found = report.chosen(ROWS, 'lora', 'ties')
    assert found.tasks.tolist() == [[0.65]]
    assert found.settings == ('λ 2',)
    with pytest.raises(ValueError, match='no test accuracy'):
        report.chosen(ROWS[:-1], 'lora', 'ties')


@pytest.mark.parametrize(
    ('values', 'said'),
    [
        ([0.10, 0.11, 0.12], 'confirmed'),
        ([-0.10, -0.11, -0.12], 'contradicted'),
        ([-0.1, 0.2, 0.3], 'not decidable here'),
        ([0.0, 0.0, 0.0], 'not decidable here'),
        ([0.5], 'not decidable here'),
    ],
)
def test_a_verdict_is_that_of_the_interval(values, said):
    assert verdict(interval(values)) == said
