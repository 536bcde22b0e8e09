"""Distillation: the teacher's answers, its vocabulary, and its place beside the frozen leaves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import peftjax
from peftjax.train import evaluate, fit
from peftjax.train.data.batches import collate
from peftjax.train.losses.distillation import distillation_loss
from peftjax.train.settings import SettingsError, read_settings
from peftjax.train.task import Beside, Forward
from peftjax.train.tasks import base
from peftjax.train.tasks.registry import find_task
from tests.tiny_runs import WORDS, checkpoint

ROWS = [
    {'text': f'the {noun} was {word} a {other}', 'label': 'fresh' if i < 4 else 'rotten'}
    for noun in ('film', 'plot', 'cast', 'scene')
    for i, word in enumerate(WORDS[:8])
    for other in ('scene', 'film')
]


def _headed(folder, seed=0):
    """A tiny BERT with a head of two classes, its values drawn here."""
    checkpoint(folder, 'tiny_bert')
    weights = load_file(folder / 'model.safetensors')
    width = json.loads((folder / 'config.json').read_text())['hidden_size']
    rng = np.random.default_rng(seed)
    head = {
        'classifier.weight': rng.normal(size=(2, width)).astype(np.float32),
        'classifier.bias': np.zeros(2, np.float32),
    }
    save_file({**weights, **head}, folder / 'model.safetensors')
    return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp('distillation')
    (made / 'all.jsonl').write_text('\n'.join(map(json.dumps, ROWS)), encoding='utf-8')
    checkpoint(made / 'student', 'tiny_bert')
    _headed(made / 'teacher')
    checkpoint(made / 'llama', 'tiny_llama')
    return made


def _made(folder, task='distillation', **options):
    decoder = task != 'distillation'
    columns = {'text': 'text'} if decoder else {'text': 'text', 'label': 'label'}
    data = {'labels': ['fresh', 'rotten']} if not decoder else {}
    head = {'task': 'causal_lm'} if decoder else {'task': 'classification', 'num_labels': 2}
    source = folder / ('llama' if decoder else 'student')
    config = read_settings(
        {
            'model': {'source': str(source), **head},
            'task': task,
            'data': {
                'source': str(folder / 'all.jsonl'),
                'columns': columns,
                'batch_size': 8,
                'eval_batch_size': 8,
                'lengths': [12],
                'options': options,
                **data,
            },
        }
    )
    model = peftjax.load(**config.model.arguments())
    return model, find_task(task)(config, model)


def _forward(model, task):
    tx = peftjax.chain(peftjax.lora(rank=2, targets='all-linear'), peftjax.select(r'classifier/.*'))
    adapter, frozen = tx.init(jax.random.key(0), model)
    beside = Beside(frozen, None, task.constants)
    return Forward(peftjax.adapt(model, tx), model.apply, adapter, beside, None)


@pytest.mark.sampled
@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_the_loss_is_a_share_of_the_labels_and_of_the_teacher(folder, share):
    options = {'teacher': str(folder / 'teacher'), 'share': share, 'temperature': 3.0}
    model, task = _made(folder, **options)
    forward, rows = _forward(model, task), list(task.splits['train'][:3])
    batch = collate(rows, (12,))
    totals = task.totals(forward, batch)
    teacher = peftjax.load(options['teacher'], task='classification')
    inputs = base.encoder_inputs(batch)
    wanted, logits = teacher.apply(teacher.params, **inputs), forward(inputs)
    soft = float(distillation_loss(logits, wanted, 3.0).sum())
    hard = float(base.weighted_totals(logits, batch)['loss'])
    assert float(totals['loss']) == pytest.approx((1 - share) * hard + share * soft, rel=1e-4)
    filler = {**rows[0], 'weights': np.float32(0)}
    filled = task.totals(forward, collate([*rows, filler], (16,)))
    for name, total in totals.items():
        assert float(filled[name]) == pytest.approx(float(total), rel=1e-4), name


def test_a_student_learns_the_teachers_answers_against_the_labels(folder):
    model, task = _made(folder, teacher=str(folder / 'teacher'), share=1.0)
    tx = peftjax.chain(peftjax.lora(rank=4, targets='all-linear'), peftjax.select(r'classifier/.*'))
    before = evaluate(model, tx, *tx.init(jax.random.key(0), model), task)
    done = fit(model, tx, task, optimizer=optax.adam(1e-2), duration='30 steps')
    after = evaluate(model, tx, done.adapter, done.frozen, task)
    assert after['soft'] < 0.5 * before['soft']


def test_a_decoder_that_teaches_itself_has_no_soft_loss_and_ignores_padding(folder):
    model, task = _made(folder, 'distillation_text', teacher=str(folder / 'llama'), share=1.0)
    tx = peftjax.lora(rank=2, targets='all-linear')
    adapter, frozen = tx.init(jax.random.key(0), model)
    beside = Beside(frozen, None, task.constants)
    forward = Forward(peftjax.adapt(model, tx), model.apply, adapter, beside, None)
    rows = list(task.splits['train'][:2])
    totals = task.totals(forward, jax.tree.map(jnp.asarray, collate(rows, (12,))))
    assert float(totals['soft']) == pytest.approx(0.0, abs=1e-4)
    assert float(totals['hard']) > 0
    other = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1, leaf.dtype), task.constants)
    forward = Forward(
        peftjax.adapt(model, tx), model.apply, adapter, Beside(frozen, None, other), None
    )
    batches = (jax.tree.map(jnp.asarray, collate(rows, (n,))) for n in (12, 24))
    short, long = (task.totals(forward, batch) for batch in batches)
    assert float(short['soft']) > 0.01
    assert float(long['soft']) == pytest.approx(float(short['soft']), rel=1e-4)


def test_unfit_teachers_are_refused(folder, tmp_path):
    with pytest.raises(SettingsError, match='needs a teacher: write --data.options.teacher'):
        _made(folder)
    with pytest.raises(SettingsError, match='has no trained head: classifier'):
        _made(folder, teacher=str(folder / 'student'))
    other = _headed(tmp_path / 'other')
    tokenizer = Tokenizer.from_file(str(other / 'tokenizer.json'))
    tokenizer.add_tokens(['more'])
    tokenizer.save(str(other / 'tokenizer.json'))
    with pytest.raises(SettingsError, match="differ in \\('more', 20\\)|the same vocabulary"):
        _made(folder, teacher=str(other))
    with pytest.raises(SettingsError, match='a share is from 0 to 1'):
        _made(folder, teacher=str(folder / 'teacher'), share=1.5)
