"""The study of forgetting: a tiny one from end to end, its measures, and its claims."""

import dataclasses

import numpy as np
import pytest

import peftjax
from experiments.studies.forgetting import report, study
from experiments.studies.forgetting.measure import Encoder, intruders, left_vectors
from experiments.studies.results import read
from tests.studies.tiny_questions import encoder, questions
from tests.tiny_runs import WORDS

TEXTS = [' '.join(WORDS[i : i + 4]) for i in range(8)]


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp('forgetting')
    protocol = dataclasses.replace(study.TINY, source=encoder(folder), questions=questions(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, 'general_texts', lambda count: TEXTS[:count])
        study.run(folder / 'study', protocol)
    return protocol, folder / 'study', read(folder / 'study' / 'results.jsonl')


def test_every_run_is_measured_at_every_mark_from_the_start_on(tiny):
    protocol, _, rows = tiny
    found = report.runs(rows)
    assert list(found) == ['lora 1', 'full']
    for each in found.values():
        assert len(each) == protocol.seeds
        for run in each:
            assert [row['step'] for row in run] == [0, *protocol.marks]
            assert run[0]['distance'] == pytest.approx(0, abs=1e-6)
            assert run[0]['correlation'] == pytest.approx(1)
            assert run[-1]['distance'] > 1e-6
            assert set(run[0]['intruders'].values()) == {0.0}


def test_a_study_that_is_complete_trains_nothing(tiny):
    protocol, folder, _ = tiny
    before = (folder / 'results.jsonl').read_bytes()
    study.run(folder, protocol)
    assert (folder / 'results.jsonl').read_bytes() == before


def test_the_report_of_a_tiny_study_has_every_method(tiny, tmp_path):
    rows = tiny[2]
    said = report.text(rows)
    assert said.count('| LoRA, rank 1 |') == said.count('| full fine-tuning |') == 3
    report.draw(rows, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


def test_drift_is_that_of_the_embeddings(tiny):
    protocol = tiny[0]
    before = Encoder(protocol.source, TEXTS, 8)
    params = dict(peftjax.load(protocol.source, pooling='mean').params)
    assert before.drift(params).distance == pytest.approx(0, abs=1e-6)
    layers = params['layers']
    norm = layers['ffn']['layer_norm']
    turned = {**norm, 'scale': -norm['scale'], 'bias': -norm['bias']}
    opposite = {**params, 'layers': {**layers, 'ffn': {**layers['ffn'], 'layer_norm': turned}}}
    found = before.drift(opposite)
    assert found.distance > 0.5
    assert found.correlation < 1


def test_vectors_that_a_matrix_gained_are_intruders():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(40, 30))
    pretrained = left_vectors(kernel)
    assert intruders(pretrained, pretrained, 0.99) == 0
    new = np.outer(rng.normal(size=40), rng.normal(size=30))
    tuned = left_vectors(kernel + 10 * new)
    assert intruders(tuned[:, :1], pretrained, 0.7) == 1
    singular = np.linalg.svd(kernel.T)[0]
    assert np.abs((singular * pretrained).sum(0)) == pytest.approx(np.ones(30))


def _rows(drifts, accuracies, intruding):
    """Runs of three measurements, whose losses fall in the same way; a value for each seed."""
    return [
        {
            'stage': 'point',
            'method': method,
            'seed': seed,
            'step': step,
            'rate': 0.01,
            'trainable': 100,
            'test/loss': 2.0 - step / 10,
            'test/accuracy': accuracies[method][seed] * step / 10,
            'distance': drifts[method][seed] * step / 10,
            'correlation': 1.0,
            'intruders': {'0.6': intruding[method][seed] * step / 10},
        }
        for method in drifts
        for seed in range(3)
        for step in (0, 5, 10)
    ]


METHODS = ('lora 1', 'lora 4', 'full')
RISING = dict(zip(METHODS, ([0.1, 0.11, 0.12], [0.2, 0.21, 0.23], [0.4, 0.42, 0.44]), strict=True))
MIXED = dict(zip(METHODS, ([0.1, 0.5, 0.3], [0.5, 0.1, 0.3], [0.3, 0.2, 0.4]), strict=True))
FALLING = {m: [-v for v in values] for m, values in RISING.items()}


@pytest.mark.parametrize(
    ('values', 'said'),
    [
        (RISING, ['confirmed', 'confirmed', 'confirmed', 'contradicted']),
        (FALLING, ['contradicted', 'contradicted', 'contradicted', 'confirmed']),
        (MIXED, ['not decidable here'] * 4),
    ],
)
def test_a_verdict_follows_from_the_differences_of_seeds(values, said):
    found = report.claims(_rows(values, values, values))
    assert [each.verdict for each in found] == said


def test_methods_are_compared_at_the_loss_that_all_of_them_reach():
    rows = _rows(RISING, RISING, RISING)
    for row in rows:
        if row['method'] == 'lora 1':
            row['test/loss'] += 0.5
    found = report.runs(rows)
    assert report.equal_losses(found) == [1.5, 1.5, 1.5]
    assert report.at_loss(found['full'][0], 1.5, lambda row: row['distance']) == pytest.approx(0.2)
    with pytest.raises(ValueError, match='least loss'):
        report.at_loss(found['lora 1'][0], 1.4, lambda row: row['distance'])


def test_a_study_that_is_not_over_says_so():
    rows = _rows(RISING, RISING, RISING)
    with pytest.raises(ValueError, match='run to the end'):
        report.runs(rows[:-1])
