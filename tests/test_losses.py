"""Losses of contrast and of a teacher against their formulas, and T-Few's on a decoder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peftjax
from peftjax.train.data.batches import collate
from peftjax.train.losses.choices import length_normalised_loss, unlikelihood_loss
from peftjax.train.losses.contrastive import info_nce_loss, mean_pool
from peftjax.train.losses.distillation import distillation_loss
from peftjax.train.settings import read_settings
from peftjax.train.task import Beside, Forward
from peftjax.train.tasks.registry import find_task
from tests.tiny_runs import checkpoint


def _softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@given(st.integers(0, 1000), st.floats(0.25, 8.0))
@settings(deadline=None, max_examples=25)
def test_a_teacher_of_the_same_logits_teaches_nothing_and_others_as_the_formula(seed, temperature):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(2, 3, 7)).astype(np.float32) * 3
    p, q = _softmax(teacher / temperature), _softmax(student / temperature)
    wanted = temperature**2 * (p * np.log(p / q)).sum(-1)
    found = distillation_loss(jnp.asarray(student), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-4)
    same = distillation_loss(jnp.asarray(student), jnp.asarray(student), temperature)
    np.testing.assert_allclose(same, 0.0, atol=1e-5)


def test_a_teacher_may_rule_a_class_out_and_gets_no_gradient():
    student, teacher = jnp.asarray([0.5, 1.0, -1.0]), jnp.asarray([0.0, 1.0, -jnp.inf])
    found, slopes = jax.value_and_grad(lambda s, t: distillation_loss(s, t), argnums=(0, 1))(
        student, teacher
    )
    assert np.isfinite(found)
    assert np.isfinite(slopes[0]).all()
    assert not np.any(slopes[1])
    # With a high temperature the gradient is that of half the squared distance of centred logits.
    student, teacher = jnp.asarray([0.5, 1.0, -1.5]), jnp.asarray([0.2, 0.4, -0.6])
    slope = jax.grad(lambda s: distillation_loss(s, teacher, 1000.0))(student)
    np.testing.assert_allclose(slope, (student - teacher) / 3, rtol=1e-2, atol=1e-3)


def test_info_nce_is_the_formula_and_ignores_the_excluded():
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(3, 4)).astype('f4'), rng.normal(size=(5, 4)).astype('f4')
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, c)]
    logits = 20 * unit[0] @ unit[1].T
    wanted = -np.log(_softmax(logits)[np.arange(3), np.arange(3)])
    np.testing.assert_allclose(
        info_nce_loss(jnp.asarray(a), jnp.asarray(c)), wanted, rtol=1e-3, atol=1e-5
    )
    excluded = np.zeros((3, 5), bool)
    excluded[:, 3:] = True
    excluded[0, 0] = True  # its own candidate counts all the same
    wanted = -np.log(_softmax(logits[:, :3])[np.arange(3), np.arange(3)])
    found = info_nce_loss(jnp.asarray(a), jnp.asarray(c), excluded)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    slope = jax.grad(lambda x: info_nce_loss(jnp.asarray(a), x, excluded).sum())(jnp.asarray(c))
    assert not np.any(slope[3:])
    zero = jax.grad(lambda x: info_nce_loss(x, jnp.asarray(c)).sum())(jnp.zeros((3, 4)))
    assert np.isfinite(zero).all()


def test_padding_has_no_part_in_the_mean():
    states = jnp.asarray([[[1.0, 2.0], [3.0, 4.0], [jnp.nan, 9.0]], [[1.0, 1.0]] * 3])
    found = mean_pool(states, np.asarray([[1, 1, 0], [0, 0, 0]]))
    assert found.tolist() == [[2.0, 3.0], [0.0, 0.0]]


def test_choices_of_a_decoder_are_scored_as_each_alone(tmp_path):
    rows = [
        {
            'text': f'is the {noun} a {adjective} scene',
            'choices': ['fine', 'dull film', 'the cast was flat'][: 2 + i % 2],
            'label': [0, 'dull film', '1'][i % 3],
        }
        for i, noun in enumerate(('film', 'plot', 'cast', 'scene', 'the') * 4)
        for adjective in ('fine', 'warm')
    ]
    (tmp_path / 'all.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    config = read_settings(
        {
            'model': {
                'source': str(checkpoint(tmp_path / 'llama', 'tiny_llama')),
                'task': 'causal_lm',
            },
            'task': 'choices_decoder',
            'data': {
                'source': str(tmp_path / 'all.jsonl'),
                'columns': {name: name for name in rows[0]},
                'lengths': [16],
            },
        }
    )
    model = peftjax.load(**config.model.arguments())
    task = find_task('choices_decoder')(config, model)
    tx = peftjax.lora(rank=2, targets='all-linear')
    adapter, frozen = tx.init(jax.random.key(0), model)
    forward = Forward(peftjax.adapt(model, tx), model.apply, adapter, Beside(frozen), None)
    some = list(task.splits['train'][:4])
    totals = task.totals(forward, collate(some, (16,)))
    loss = right = 0.0
    for row in some:
        scores = []
        for side in ('', ':1', ':2'):
            ids, targets = (row[f'{name}{side}'] for name in ('input_ids', 'targets'))
            kept = (row[f'segment_ids{side}'] > 0) & (targets >= 0)
            logits = np.asarray(forward({'input_ids': ids[None]}), np.float64)[0]
            probs = np.log(_softmax(logits))[np.arange(len(ids)), np.maximum(targets, 0)]
            scores.append(probs[kept])
        longest = max(map(len, scores))
        log_probs = np.zeros((1, 3, longest), 'f4')
        mask = np.zeros((1, 3, longest), bool)
        for i, each in enumerate(scores):
            log_probs[0, i, : len(each)], mask[0, i, : len(each)] = each, True
        answer = np.asarray([row['answer']])
        given_ = jnp.asarray(log_probs), mask, answer
        loss += -scores[answer[0]].mean()
        loss += float(length_normalised_loss(*given_)) + float(unlikelihood_loss(*given_))
        means = [each.mean() if len(each) else -np.inf for each in scores]
        right += int(np.argmax(means)) == answer[0]
    assert float(totals['loss']) == pytest.approx(loss, rel=1e-4)
    assert float(totals['accuracy']) == right
    filler = {**some[0], 'weights': np.float32(0)}
    filled = task.totals(forward, collate([*some, filler], (24,)))
    for name, total in totals.items():
        assert float(filled[name]) == pytest.approx(float(total), rel=1e-4), name
