"""The study of few examples: a tiny one from end to end, its claims, and its crossings."""

import dataclasses

import pytest

from experiments.studies.few_examples import report, reviews, study
from experiments.studies.results import read
from tests.studies.tiny_questions import encoder, questions
from tests.tiny_runs import film_reviews


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp('few')
    protocol = dataclasses.replace(study.TINY, source=encoder(folder), data=questions(folder))
    study.run(folder / 'study', protocol)
    return protocol, folder / 'study', read(folder / 'study' / 'results.jsonl')


def test_every_method_and_size_has_a_final_model_of_every_seed(tiny):
    protocol, _, rows = tiny
    finals = [row for row in rows if row['stage'] == 'final']
    assert {(row['method'], row['examples'], row['seed']) for row in finals} == {
        (method, size.examples, seed)
        for method in protocol.methods
        for size in protocol.sizes
        for seed in range(protocol.seeds)
    }
    assert len(finals) == len(protocol.methods) * len(protocol.sizes) * protocol.seeds


def test_the_rate_is_that_of_the_least_validation_loss_and_test_questions_choose_nothing(tiny):
    protocol, _, rows = tiny
    tuned = [row for row in rows if row['stage'] == 'tune']
    assert not [name for row in tuned for name in row if name.startswith('test/')]
    for method in protocol.methods:
        mine = [row for row in tuned if row['method'] == method]
        best = min(mine, key=lambda row: row['validation/loss'])
        rates = {row['rate'] for row in rows if row['stage'] == 'final' and row['method'] == method}
        assert rates == {best['rate']}
        assert min(row['rate'] for row in mine) < best['rate'] < max(row['rate'] for row in mine)


def test_a_study_that_is_complete_trains_nothing_and_no_other_goes_on_with_it(tiny):
    protocol, folder, rows = tiny
    before = (folder / 'results.jsonl').read_bytes()
    study.run(folder, protocol)
    assert (folder / 'results.jsonl').read_bytes() == before
    with pytest.raises(ValueError, match='differs from the protocol'):
        study.run(folder, dataclasses.replace(protocol, seeds=1))


def test_a_study_that_was_cut_short_ends_with_the_same_scores(tiny, tmp_path):
    protocol, folder, rows = tiny
    lines = (folder / 'results.jsonl').read_bytes().splitlines(keepends=True)
    head = next(i for i, row in enumerate(rows) if row['method'] == 'head')
    (tmp_path / 'results.jsonl').write_bytes(b''.join(lines[: head + 3]) + lines[head + 3][:20])
    study.run(tmp_path, protocol)
    again = read(tmp_path / 'results.jsonl')

    def kept(each):
        names = ('seconds', 'alone', 'together', 'factor')
        return [{name: row[name] for name in row if name not in names} for row in each]

    assert kept(again) == kept(rows)


def _rows(accuracies):
    """Final rows of accuracies by method and size, one a seed, and the timing of a method."""
    rows = [
        {
            'stage': 'final',
            'method': method,
            'examples': size,
            'seed': seed,
            'rate': 0.01,
            'steps': 10,
            'batch_size': 8,
            'trainable': 100,
            'test/accuracy': value,
        }
        for method, sizes in accuracies.items()
        for size, values in sizes.items()
        for seed, value in enumerate(values)
    ]
    rows += [{'stage': 'tune', 'method': 'full', 'examples': 32, 'seed': seed} for seed in (0, 1)]
    return [*rows, {'stage': 'together', 'method': 'full', 'runs': 4, 'factor': 1.25}]


FULL = {32: [0.4, 0.5, 0.6], 320: [0.7, 0.71, 0.72], 1000: [0.8, 0.81, 0.82]}


def _better(differences):
    return {n: [v + d for v, d in zip(FULL[n], differences[n], strict=True)] for n in FULL}


ROWS = _rows(
    {
        'full': FULL,
        'bottleneck': _better({32: [0.1, 0.11, 0.12], 320: [0, 0, 0], 1000: [-0.1, -0.11, -0.12]}),
        'ia3': _better({32: [-0.1, -0.11, -0.12], 320: [0, 0, 0], 1000: [0, 0, 0]}),
        'lora': _better({32: [0.1, -0.1, 0.01], 320: [0, 0, 0], 1000: [0.1, 0.1, 0.1]}),
    }
)


def test_a_verdict_follows_from_the_differences_of_seeds():
    found = report.QUESTIONS.claims(ROWS)
    said = [each.verdict for each in found]
    assert said == [
        'confirmed',  # bottleneck adapters at 32
        'contradicted',  # (IA)³ at 32
        'not decidable here',  # LoRA at 32
        'confirmed',  # the gain of adapters falls
        'contradicted',  # LoRA's share at 320
    ]
    assert found[0].effect.startswith('11.0 (8.5 to 13.5; n = 3) points')


def test_a_text_holds_a_row_for_each_method_and_the_sign_changes():
    said = report.QUESTIONS.text(ROWS)
    assert '| bottleneck adapters (Pfeiffer) | **11.0 (8.5 to 13.5; n = 3)** |' in said
    assert '| 32 | 10 | 8 | 2 |' in said
    assert '| 320 | 10 | 8 | none |' in said
    assert '1.25 for full fine-tuning' in said


def test_a_difference_crosses_where_its_sign_changes():
    assert report.sign_changes([10, 1000, 10000], [0.1, -0.1, -0.2]) == [100.0]
    assert report.sign_changes([10, 1000], [0.1, 0.2]) == []


def test_a_study_that_is_not_over_says_so():
    with pytest.raises(ValueError, match='to its end'):
        report.scores([row for row in ROWS if row.get('seed') != 2 or row['method'] == 'full'])


def test_two_models_of_one_seed_are_refused():
    other = {**next(row for row in ROWS if row['stage'] == 'final'), 'rate': 0.03}
    with pytest.raises(ValueError, match='two final models of full with seed 0 on 32 examples'):
        report.scores([*ROWS, other])


def test_the_figure_is_drawn_from_the_rows(tmp_path):
    report.QUESTIONS.draw(ROWS, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('protocol', [study.Protocol(), reviews.PROTOCOL])
def test_a_protocol_names_known_methods(protocol):
    assert set(protocol.methods) <= set(study.METHODS) and protocol.table in study.TABLES


def test_film_reviews_are_split_by_film(tmp_path):
    film_reviews(tmp_path)
    found = study.TABLES['reviews'](str(tmp_path / 'reviews.csv.bz2'))
    texts = [{each.text for each in found[split]} for split in ('train', 'validation', 'test')]
    assert all(texts) and not texts[0] & texts[1] and not (texts[0] | texts[1]) & texts[2]
    assert {each.label for each in found['train']} == {'fresh', 'rotten'}
