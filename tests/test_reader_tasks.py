"""What tasks make of published data sets: references, labels and choices."""

import math
from typing import Any

import jax
import numpy as np
import pytest

import peftjax
from peftjax.train.data.batches import collate
from peftjax.train.data.tables import read_splits
from peftjax.train.settings import Settings
from peftjax.train.task import Beside, Forward
from peftjax.train.tasks.generated import Writer
from peftjax.train.tasks.infer import infer
from peftjax.train.tasks.registry import find_task
from tests import paper_files


def test_a_written_text_may_equal_any_of_the_references(tmp_path, monkeypatch):
    model = paper_files.checkpoint(tmp_path / 'gpt2', 'gpt2')
    data = paper_files.data_settings(tmp_path / 'data', 'e2e')
    options = {'generated': ['exact_match', 'bleu'], 'max_new_tokens': 4}
    changes = {'model.source': str(model), 'data.options': options}
    changes['data.chat_template'] = "{% for m in messages %}{{ m['content'] }}[EOS]{% endfor %}"
    settings = infer(Settings(task='instructions', data=data).change(changes))
    task = find_task('instructions')(settings, peftjax.load(str(model)))
    rows = read_splits(data, ['prompt', 'answer'])['test']
    last = [row['references'][-1].strip() for row in rows]
    monkeypatch.setattr(Writer, 'write', lambda self, trained, prompts: last[: len(prompts)])
    nobody: Any = None
    scores = task.evaluators[0](nobody, 'test')
    assert scores['exact_match'] == 1.0 and scores['bleu'] == pytest.approx(100.0)
    first = [row['references'][0].strip() for row in rows]
    assert first != last


def test_labels_and_columns_of_a_published_set_need_no_settings(tmp_path):
    model = paper_files.checkpoint(tmp_path / 'roberta', 'roberta')
    data = paper_files.data_settings(tmp_path / 'data', 'glue_mnli')
    settings = Settings(task='pairs', data=data).change({'model.source': str(model)})
    found = infer(settings)
    assert found.data.labels == ('entailment', 'neutral', 'contradiction')
    assert found.model.num_labels == 3 and found.data.columns['second'] == 'second'
    loaded = peftjax.load(str(model), task='classification', num_labels=3, key=jax.random.key(0))
    task = find_task('pairs')(found, loaded)
    targets = [int(row['targets']) for row in task.splits['train']]
    assert targets == [number % 3 for number in range(12)]


def test_the_choices_of_a_few_examples_are_scored_by_their_mean_log_probability(tmp_path):
    model = paper_files.checkpoint(tmp_path / 't5', 't5')
    data = paper_files.data_settings(tmp_path / 'data', 'superglue_rte_choices')
    settings = Settings(task='choices', data=data).change(
        {'model.source': str(model), 'data.options': {'shots': 4}, 'seed': 3}
    )
    loaded = peftjax.load(str(model), task='seq2seq_lm')
    task = find_task('choices')(infer(settings), loaded)
    assert len(task.splits['train']) == 4 and len(task.splits['test']) == 12
    row = task.splits['test'][0]
    assert row['choice_ids'].shape == row['choice_mask'].shape
    assert {int(each['targets']) for each in task.splits['test']} == {0, 1}
    again = find_task('choices')(infer(settings.change({'seed': 4})), loaded)
    _check_choices(task, loaded)
    drawn = [[row['input_ids'].tolist() for row in t.splits['train']] for t in (task, again)]
    assert drawn[0] != drawn[1]


def _check_choices(task, model) -> None:
    """The totals of two examples, against the model run for one answer at a time."""
    tx = peftjax.select(r'.*layer_norm/.*')
    adapter, frozen = tx.init(jax.random.key(0), model)
    predict = peftjax.adapt(model, tx)
    rows = task.splits['test'][:2]
    batch = collate(rows, [64])
    forward = Forward(predict, model.apply, adapter, Beside(frozen), None)
    means = []
    for row in rows:
        means.append([])
        for ids, mask in zip(row['choice_ids'], row['choice_mask'], strict=True):
            answer = ids[mask]
            logits = predict(
                adapter,
                frozen,
                input_ids=row['input_ids'][None],
                attention_mask=np.ones((1, len(row['input_ids'])), bool),
                decoder_input_ids=np.asarray([[0, *answer[:-1]]], np.int32),
                decoder_attention_mask=np.ones((1, len(answer)), bool),
            )
            found = jax.nn.log_softmax(logits[0].astype(np.float32))
            means[-1].append([float(found[place, token]) for place, token in enumerate(answer)])
    targets = [int(row['targets']) for row in rows]
    loss, hits = 0.0, 0
    for choices, right in zip(means, targets, strict=True):
        scores = np.asarray([np.mean(each) for each in choices])
        wrong = [
            math.log(1 - math.exp(x) + 0.01) for n, c in enumerate(choices) if n != right for x in c
        ]
        loss += -scores[right] - np.mean(wrong) - scores[right] + np.log(np.exp(scores).sum())
        hits += int(np.argmax(scores) == right)
    totals = task.totals(forward, batch)
    assert float(totals['loss']) == pytest.approx(loss, rel=1e-4)
    assert float(totals['accuracy']) == hits and float(totals['weights']) == 2
