"""Scores beside those of their definitions, and what no score counts."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.train.metrics.registry import METRICS, better, metrics_of
from peftjax.train.metrics.retrieval import right_ranks
from peftjax.train.metrics.texts import TEXT_METRICS
from peftjax.train.settings import SettingsError


def _score(name, classes=(), **outputs):
    [metric] = metrics_of([name], classes)
    return metric.compute({key: list(rows) for key, rows in outputs.items()})


def _logits(classes, count=3):
    return np.eye(count, dtype=np.float32)[np.asarray(classes)]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_scores_of_two_classes_are_those_of_their_counts(pairs):
    true, found = (np.asarray(each, np.int32) for each in zip(*pairs, strict=True))
    outputs = {'targets': true, 'logits': _logits(found, 2)}
    tp, fp = int((true & found).sum()), int((found & ~true & 1).sum())
    fn, tn = int((true & ~found & 1).sum()), int((~true & ~found & 1).sum())
    assert _score('accuracy', **outputs) == pytest.approx((true == found).mean())
    assert _score('f1', **outputs) == pytest.approx(2 * tp / max(2 * tp + fp + fn, 1))
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert _score('matthews', **outputs) == pytest.approx((tp * tn - fp * fn) / (below or 1))


@pytest.mark.parametrize('name', ['accuracy', 'f1_macro', 'matthews'])
def test_a_target_below_zero_counts_nowhere(name):
    true, found = np.asarray([0, 1, 2, 1]), [0, 1, 1, 1]
    plain = _score(name, targets=true, logits=_logits(found))
    more = _score(name, targets=[*true, -100, -1], logits=_logits([*found, 2, 0]))
    assert plain == more < 1


def test_f1_of_many_classes_is_refused_before_a_run_and_within():
    with pytest.raises(SettingsError, match='there are 3; write f1_macro'):
        metrics_of(['f1'], ('a', 'b', 'c'))
    with pytest.raises(SettingsError, match='there are 3'):
        _score('f1', targets=[0, 1], logits=_logits([0, 1]))


def test_correlations_are_those_of_scipy_and_zero_where_nothing_varies():
    rng = np.random.default_rng(0)
    true, found = rng.standard_normal((2, 50)).astype(np.float32)
    for name, other in (('pearson', scipy.stats.pearsonr), ('spearman', scipy.stats.spearmanr)):
        assert _score(name, targets=true, values=found) == pytest.approx(other(true, found)[0])
        assert _score(name, targets=true, values=np.ones(50)) == 0.0
    assert _score('rmse', targets=[1.0, 2.0], values=[1.0, 4.0]) == pytest.approx(math.sqrt(2))


def test_an_entity_counts_with_its_type_and_both_ends_and_ignored_places_do_not():
    classes = ('O', 'B-PER', 'I-PER', 'B-LOC')
    true = [np.asarray([1, 2, -100, 0, 3]), np.asarray([0, 1])]
    found = [np.asarray([1, 2, 3, 0, 1]), np.asarray([0, 1])]
    # Two of three entities are right: precision and recall 2/3.
    assert _score('entity_f1', classes, targets=true, tags=found) == pytest.approx(2 / 3)
    short = [np.asarray([1, 0, 3, 0, 3]), found[1]]
    assert _score('entity_f1', classes, targets=true, tags=short) == pytest.approx(2 / 3)
    with pytest.raises(SettingsError, match='needs tags such as O, B-PER, I-PER, and these are N'):
        metrics_of(['entity_f1'], ('N', 'V'))


def test_perplexity_is_over_tokens_and_not_over_examples():
    found = _score('perplexity', losses=np.asarray([2.0, 0.0]), counts=np.asarray([1.0, 3.0]))
    assert found == pytest.approx(math.exp(0.5))


def _pairs(anchors, positives, **more):
    count = len(anchors)
    numbers = {'text': np.arange(count), 'text:1': count + np.arange(count)}
    return {
        **{'anchors': list(anchors), 'positives': list(positives)},
        **{**numbers, 'group': np.full(count, -1), **more},
    }


def test_ranks_are_those_of_sorted_cosines_and_equal_vectors_find_nothing():
    rng = np.random.default_rng(0)
    anchors, positives = rng.standard_normal((2, 40, 5))
    unit = positives / np.linalg.norm(positives, axis=1, keepdims=True)
    order = np.argsort(-(anchors @ unit.T), axis=1)
    expected = [1 + order[i].tolist().index(i) for i in range(40)]
    assert right_ranks(_pairs(anchors, 3 * positives)).tolist() == expected
    for alike in (np.zeros((40, 5)), np.ones((40, 5))):
        assert right_ranks(_pairs(anchors, alike)).tolist() == [40] * 40
    twice = {name: np.tile(rows, 2) for name, rows in _pairs(anchors, positives).items()
             if name not in ('anchors', 'positives')}  # fmt: skip
    doubled = (np.concatenate([each, each]) for each in (anchors, positives))
    assert right_ranks(_pairs(*doubled, **twice)).tolist() == expected * 2


def test_scores_of_written_texts():
    found, references = ['the film was fine', 'so 3'], [['the film was fine'], ['#### 4']]
    scores = {name: metric(found, references) for name, metric in TEXT_METRICS.items()}
    assert scores['exact_match'] == scores['last_number'] + 0.5 == 0.5
    assert 0 < scores['bleu'] < 100 and 0 < scores['chrf'] < 100
    assert scores['rouge1'] == scores['rougeL'] == pytest.approx(0.5)
    same = {
        name: metric([of[0] for of in references], references)
        for name, metric in TEXT_METRICS.items()
    }
    assert same['bleu'] == pytest.approx(100) and same['chrf'] == pytest.approx(100)
    assert TEXT_METRICS['last_number'](['it is 1,000.0'], [['#### 1000']]) == 1.0
    assert TEXT_METRICS['exact_match'](['b', 'c'], [['a', 'b'], ['b']]) == 0.5


def constant(classes):
    """A metric of one's own."""
    return lambda outputs: float(len(classes) + len(outputs['targets']))


def test_names_are_found_and_the_sign_says_what_is_better():
    [own] = metrics_of([f'{__name__}:constant'], ('a', 'b'))
    assert own.name == 'constant' and own.compute({'targets': [np.ones((), np.int32)]}) == 3.0
    with pytest.raises(SettingsError, match="no metric 'mathews'; near names: .'matthews'"):
        metrics_of(['mathews'])
    for name in ('nowhere:f1', ':f1', '.a:f1', 'math:no_such'):
        with pytest.raises(SettingsError, match='cannot be read'):
            metrics_of([name])
    less = [name for name in METRICS if better(name) != name]
    assert less == ['rmse', 'perplexity'] and better('-loss') == '-loss'
