"""The task `contrastive` on a small encoder, and scores of retrieval."""

import json

import jax
import numpy as np
import optax
import pytest

import peftjax
from peftjax.train import evaluate, fit, predict
from peftjax.train.data.batches import collate
from peftjax.train.losses.contrastive import info_nce_loss
from peftjax.train.metrics.retrieval import reciprocal_rank, right_ranks
from peftjax.train.settings import read_settings
from peftjax.train.task import Beside, Forward
from peftjax.train.tasks.contrastive import excluded
from peftjax.train.tasks.registry import find_task
from tests.tiny_runs import checkpoint

KINDS = {'good': ('fine', 'grand', 'warm', 'witty'), 'bad': ('dull', 'flat', 'cold', 'weak')}
ROWS = [
    {
        'anchor': f'{noun} {one} a {place}',
        'positive': f'the {other} {noun}',
        'negative': f'is {noun} {place}',
        'kind': kind,
    }
    for kind, words in KINDS.items()
    for i, one in enumerate(words)
    for other in (words[i - 1], words[i - 2])
    for noun in ('film', 'plot', 'cast', 'scene')
    for place in ('was', 'is')
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp('contrastive')
    (made / 'all.jsonl').write_text('\n'.join(map(json.dumps, ROWS)), encoding='utf-8')
    checkpoint(made / 'bert', 'tiny_bert')
    return made


def _made(folder, columns=('anchor', 'positive'), **options):
    names = {'group': 'kind'}
    config = read_settings(
        {
            'model': {'source': str(folder / 'bert'), 'pooling': 'mean'},
            'task': 'contrastive',
            'data': {
                'source': str(folder / 'all.jsonl'),
                'columns': {name: names.get(name, name) for name in columns},
                'batch_size': 8,
                'eval_batch_size': 8,
                'lengths': [8],
                'options': options,
            },
        }
    )
    model = peftjax.load(**config.model.arguments())
    return model, find_task('contrastive')(config, model)


def _forward(model):
    tx = peftjax.lora(rank=2, targets='all-linear')
    adapter, frozen = tx.init(jax.random.key(0), model)
    return Forward(peftjax.adapt(model, tx), model.apply, adapter, Beside(frozen), None)


@pytest.mark.parametrize('symmetric', [False, True])
def test_the_loss_is_that_of_each_text_read_alone(folder, symmetric):
    model, task = _made(folder, ('anchor', 'positive', 'negative'), symmetric=symmetric)
    forward, rows = _forward(model), list(task.splits['train'][:4])

    def vector(row, side):
        ids = row[f'input_ids{side}'][row[f'segment_ids{side}'] > 0]
        return np.asarray(forward({'input_ids': ids[None]}).last_hidden_state).mean(1)[0]

    a, p, n = (np.stack([vector(row, side) for row in rows]) for side in ('', ':1', ':2'))
    batch = collate(rows, (8,))
    losses = info_nce_loss(
        jax.numpy.asarray(a), jax.numpy.asarray(np.concatenate([p, n])), excluded(batch)
    )
    if symmetric:
        back = info_nce_loss(jax.numpy.asarray(p), jax.numpy.asarray(a), excluded(batch, back=True))
        losses = (losses + back) / 2.0
    totals = task.totals(forward, batch)
    assert float(totals['loss']) == pytest.approx(float(losses.sum()), rel=1e-4)
    filler = {**rows[1], 'weights': np.float32(0)}
    filled = task.totals(forward, collate([*rows, filler], (12,)))
    assert float(filled['loss']) == pytest.approx(float(totals['loss']), rel=1e-4)
    assert float(filled['weights']) == 4.0


def test_right_answers_of_others_are_no_negatives(folder):
    _, task = _made(folder, ('anchor', 'positive', 'group'))
    rows = [row for split in task.splits.values() for row in split]
    batch = collate(rows[:6] + rows[-6:], (8,))
    found = np.asarray(excluded(batch))
    groups = batch['group']
    assert (found == (groups[:, None] == groups[None])).all()
    _, task = _made(folder)
    rows = [row for split in task.splits.values() for row in split]
    batch = collate(rows, (8,))
    found, texts = np.asarray(excluded(batch)), batch['text:1']
    assert (found == (texts[:, None] == texts[None])).all()
    assert found.sum() > len(rows)  # some positives stand there twice


@pytest.mark.parametrize('method', [peftjax.lora(rank=4, targets='all-linear'), peftjax.full()])
def test_training_brings_held_out_pairs_together(folder, method):
    model, task = _made(folder)
    adapter, frozen = method.init(jax.random.key(0), model)
    before = evaluate(model, method, adapter, frozen, task)
    done = fit(
        model, method, task, optimizer=optax.adam(5e-3), duration='30 steps', eval_every='30 steps'
    )
    after = evaluate(model, method, done.adapter, done.frozen, task)
    assert after['loss'] < 0.7 * before['loss']
    assert after['mrr'] > 2 * before['mrr']
    assert after['recall_at_5'] > 0.7
    (said,) = predict(model, method, done.adapter, done.frozen, task, [{'anchor': 'fine film'}])
    assert np.linalg.norm(said['embedding']) == pytest.approx(1.0, abs=1e-5)


def test_ranks_are_those_of_a_direct_count():
    rng = np.random.default_rng(0)
    a, p = rng.normal(size=(2, 40, 3))
    texts, groups = rng.integers(0, 25, 40), rng.integers(-1, 4, 40)
    firsts = {text: np.flatnonzero(texts == text)[0] for text in texts}
    groups = np.asarray([groups[firsts[text]] for text in texts])
    outputs = {
        'anchors': list(a),
        'positives': [p[firsts[text]] for text in texts],
        'text': list(rng.integers(20, 60, 40)),
        'text:1': list(texts),
        'group': list(groups),
    }
    wanted = []
    for i in range(40):
        ordered = sorted(
            (t for t in firsts if t != outputs['text'][i] or t == texts[i]),
            key=lambda t: -a[i] @ p[firsts[t]] / np.linalg.norm(p[firsts[t]]),
        )
        right = [
            t == texts[i] or (groups[i] >= 0 and groups[firsts[t]] == groups[i]) for t in ordered
        ]
        wanted.append(1 + right.index(True))
    assert right_ranks(outputs).tolist() == wanted
    assert reciprocal_rank(outputs) == pytest.approx(np.mean(1 / np.asarray(wanted)))


def test_equal_vectors_earn_nothing():
    same = {'anchors': [np.ones(2)] * 5, 'positives': [np.ones(2)] * 5}
    numbers = {'text': range(5, 10), 'text:1': range(5), 'group': [-1] * 5}
    assert right_ranks({**same, **numbers}).tolist() == [5] * 5


def test_a_model_without_hidden_states_is_refused(folder):
    model, task = _made(folder)
    headed = peftjax.load(str(folder / 'bert'), task='classification', num_labels=2)
    with pytest.raises(ValueError, match='reads the last hidden states of an encoder'):
        task.totals(_forward(headed), collate(task.splits['train'][:2], (8,)))
    assert model.fresh == ()
