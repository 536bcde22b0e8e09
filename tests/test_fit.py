"""`fit` as a notebook uses it: models, tasks, metrics, evaluators and optimisers of one's own."""

import dataclasses

import jax
import numpy as np
import pytest

import peftjax
from peftjax.train.data.batches import train_batches
from peftjax.train.settings import SettingsError
from peftjax.train.task import Metric, Task
from tests.tiny_fits import TASK, TX, assert_same, own_optimizer, rows, run, totals, wrapped


@pytest.fixture(params=['linen', 'nnx'])
def model(request):
    return wrapped(request.param)


def test_fit_is_the_bare_loop_bit_for_bit(model):
    done = run(model)
    init_key, step_key = jax.random.split(jax.random.key(0))
    adapter, frozen = TX.init(init_key, model)
    predict = peftjax.adapt(model, TX)

    def loss(adapter, frozen, batch, key):
        sums = totals(lambda inputs: predict(adapter, frozen, **inputs, adapter_key=key), batch)
        return sums['loss'] / sums['weights'], {}

    step = jax.jit(peftjax.train.make_train_step(loss, own_optimizer()), donate_argnums=0)
    state = peftjax.train.init_state(adapter, own_optimizer(), step_key)
    for part in train_batches(TASK.splits['train'], batch_size=8, lengths=(), seed=0, steps=9):
        state, _ = step(state, frozen, part.rows)
    assert_same(done.adapter, state.adapter)
    assert done.workdir is None and done.result['steps'] == 9


@pytest.mark.parametrize('folder', [False, True])
def test_the_best_adapter_is_that_of_the_best_evaluation(model, tmp_path, folder):
    """Scores are given: the second of four evaluations is the best."""
    given = {'validation': iter([0.1, 0.9, 0.5, 0.2, 0.3]), 'test': iter([0.6, 0.4])}
    metric = Metric(
        'right', lambda kept: next(given['validation' if len(kept['right']) == 21 else 'test'])
    )
    task = dataclasses.replace(TASK, metrics=(metric,))
    kept = {}

    def evaluator(trained, split):
        if split == 'validation':
            kept[len(kept)] = jax.device_get(trained.adapter)
        return {'own': 1.5}

    done = run(model, task, evaluators=[evaluator], workdir=tmp_path / 'run' if folder else None)
    assert done.best_step == 4 and done.result['best/validation/right'] == 0.9
    assert done.result['best/validation/own'] == done.result['test/own'] == 1.5
    assert_same(done.best_adapter, kept[1])
    # The best adapter is scored first, and the last one then.
    assert done.result['test/right'] == 0.4 and done.result['best/test/right'] == 0.6
    assert not all(
        np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (done.adapter, done.best_adapter)), strict=True)
    )
    if folder:
        stored = peftjax.restore(tmp_path / 'run/adapter', model)
        assert_same(stored.adapter, kept[1])
        assert_same(peftjax.restore(tmp_path / 'run/adapter_last', model).adapter, done.adapter)


def test_a_score_that_chooses_must_be_there_before_the_first_step(model, tmp_path):
    seen = []
    with pytest.raises(SettingsError, match=r"best is 'f1'; the scores are loss, right"):
        run(model, best='f1', workdir=tmp_path / 'run', on_step=[lambda *each: seen.append(each)])
    assert not seen and not (tmp_path / 'run').exists()
    late = {'evaluators': [lambda trained, split: {'own': 1.0}], 'best': 'owned'}
    with pytest.raises(SettingsError, match=r"best is 'owned'; the scores are loss, right, .*own"):
        run(model, **late)


def test_a_task_without_other_splits_keeps_the_last_adapter(model, tmp_path):
    task = dataclasses.replace(TASK, splits={'train': TASK.splits['train']})
    done = run(model, task, workdir=tmp_path)
    assert done.best_step is None and not [n for n in done.result if n.startswith('test/')]
    assert_same(done.best_adapter, done.adapter)
    assert_same(peftjax.restore(tmp_path / 'adapter', model).adapter, done.adapter)
    with pytest.raises(ValueError, match='the task has no rows to train on'):
        run(model, dataclasses.replace(TASK, splits={'test': rows(4, 0)}))


def test_weights_below_one_are_divided_by_as_they_are(model):
    small = [{**row, 'weights': np.float32(1e-3)} for row in TASK.splits['test']]
    transform, adapter, frozen = TX, *TX.init(jax.random.key(0), model)
    whole = peftjax.train.evaluate(model, transform, adapter, frozen, TASK)
    task = dataclasses.replace(TASK, splits={'test': small})
    found = peftjax.train.evaluate(model, transform, adapter, frozen, task)
    np.testing.assert_allclose(found['loss'], whole['loss'], rtol=1e-5)


def test_the_reference_is_the_base_and_constants_are_arguments(model):
    seen = []
    constants = {'shift': np.full(2, 0.25, np.float32)}

    def with_reference(forward, batch):
        base = forward.reference({'x': batch['x']})
        own = forward({'x': batch['x']}) + forward.constants['shift'][None]
        losses = ((own - base) ** 2).sum(-1)
        return {'loss': (losses * batch['weights']).sum(), 'weights': batch['weights'].sum()}

    task = Task(
        splits={'train': rows(16, 0), 'test': rows(8, 1)},
        totals=with_reference,
        batch_size=8,
        needs_reference=True,
        constants=constants,
    )
    adapter, frozen = TX.init(jax.random.key(0), model)
    # A fresh adapter changes nothing: the base's result is the adapter's.
    found = peftjax.train.evaluate(model, TX, adapter, frozen, task)
    np.testing.assert_allclose(found['loss'], 2 * 0.25**2, rtol=1e-6)
    done = run(model, task, on_step=[lambda step, metrics: seen.append(float(metrics['loss']))])
    assert seen[0] == pytest.approx(found['loss'], rel=1e-6) and min(seen) < seen[0]
    held = {id(leaf) for leaf in jax.tree.leaves(model.params)}
    assert all(id(leaf) in held for leaf in jax.tree.leaves(done.frozen.params))
    without = dataclasses.replace(task, needs_reference=False)
    with pytest.raises(ValueError, match='set needs_reference=True in the Task'):
        run(model, without)


def test_a_mesh_computes_the_same(model):
    mesh = peftjax.make_mesh(data=8)
    adapters = [run(m, mesh=at).adapter for m, at in ((model, None), (_on(model, mesh), mesh))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *adapters)


def _on(model, mesh):
    return model.replace(params=jax.device_put(model.params, peftjax.shardings(model, mesh)))


def test_predictions_come_in_the_order_of_the_records(model):
    task = dataclasses.replace(
        TASK,
        outputs=lambda forward, batch: {'logits': forward({'x': batch['x']})},
        row=lambda record: {'x': np.asarray(record['x'], np.float32)},
        answer=lambda kept: {'class': int(kept['logits'].argmax())},
        metrics=(),
    )
    done = run(model, task, best='-loss')
    records = [{'x': row['x']} for row in TASK.splits['test']]
    trained = done.model, done.transform, done.adapter, done.frozen
    answers = peftjax.train.predict(*trained, task, records)
    predict = peftjax.adapt(done.model, done.transform)
    logits = predict(done.adapter, done.frozen, x=np.stack([each['x'] for each in records]))
    assert [each['class'] for each in answers] == np.argmax(logits, -1).tolist()
    assert peftjax.train.predict(*trained, task, []) == []
    with pytest.raises(SettingsError, match='makes no predictions'):
        peftjax.train.predict(*trained, TASK, records)
    with pytest.raises(SettingsError, match="no split 'dev'; it has train, validation, test"):
        peftjax.train.evaluate(*trained, task, 'dev')
    scores = peftjax.train.evaluate(*trained, task)
    assert scores['loss'] == pytest.approx(done.result['test/loss'], rel=1e-6)
