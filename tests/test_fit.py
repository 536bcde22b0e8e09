"""`fit` as a notebook uses it: models, tasks, metrics, evaluators and optimisers of one's own."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import peftjax
from peftjax.interop.folder.read import read_arrays
from peftjax.train.data.batches import train_batches
from peftjax.train.fitting import fit
from peftjax.train.run_folder import RunFolder
from peftjax.train.settings import SettingsError
from peftjax.train.task import Metric, Task


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name='out')(nn.tanh(nn.Dense(8, name='hidden')(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


@pytest.fixture(params=['linen', 'nnx'])
def model(request):
    x = jnp.ones((8, 4))
    if request.param == 'nnx':
        return peftjax.wrap(NnxNet(nnx.Rngs(0)), None, {'x': x})
    net = LinenNet()
    return peftjax.wrap(net, net.init(jax.random.key(0), x), {'x': x})


def rows(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    return [{'x': a, 'y': b, 'weights': np.float32(1)} for a, b in zip(x, y, strict=True)]


def totals(forward, batch):
    logits = forward({'x': batch['x']})
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
    return {'loss': (losses * batch['weights']).sum(), 'weights': batch['weights'].sum()}


def outputs(forward, batch):
    return {'right': forward({'x': batch['x']}).argmax(-1) == batch['y']}


RIGHT = Metric('right', lambda kept: float(np.mean(kept['right'])))
TASK = Task(
    splits={'train': rows(40, 0), 'validation': rows(21, 1), 'test': rows(10, 2)},
    totals=totals,
    outputs=outputs,
    metrics=(RIGHT,),
    best='right',
    batch_size=8,
    eval_batch_size=8,
)
TX = peftjax.lora(rank=2, targets=r'.*kernel')
OFTEN = {'log_every': '1 step', 'eval_every': '2 steps', 'save_every': '3 steps'}


def own_optimizer():
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.lion(optax.cosine_decay_schedule(1e-2, 9))
    )


def run(model, task=TASK, transform=TX, duration='9 steps', **options):
    options = {'optimizer': own_optimizer(), **OFTEN, **options}
    return fit(model, transform, task, duration=duration, **options)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


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


def test_nothing_is_written_without_a_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(model)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bits(model, tmp_path):
    whole = run(model, workdir=tmp_path / 'whole')
    for stop in (1, 5, 8):
        folder = tmp_path / str(stop)

        def stopped(step, metrics, stop=stop):
            assert np.isfinite(float(metrics['loss']))
            if step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(model, workdir=folder, on_step=[stopped])
        again = run(model, workdir=folder)
        assert_same(again.adapter, whole.adapter)
        assert_same(again.best_adapter, whole.best_adapter)
        assert again.best_step == whole.best_step
        for name in ('tflop', 'steps', 'best_step', 'test/loss', 'best/test/right'):
            assert again.result[name] == whole.result[name], name


def test_the_same_call_again_changes_nothing(model, tmp_path):
    first = run(model, workdir=tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.glob('*') if p.is_file()}
    again = run(model, workdir=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.glob('*') if p.is_file()} == files
    assert again.result == first.result
    assert_same(again.best_adapter, first.best_adapter)


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


def test_an_adapter_that_took_the_place_of_the_best_one_is_not_taken_for_it(model, tmp_path):
    """Stopped behind an evaluation and ahead of its checkpoint, where the steps come out other."""
    values = iter([0.5, 0.9, 0.6, 0.2, 0.1, 0.4])
    kept = {}
    task = dataclasses.replace(TASK, metrics=(), best='own')

    def evaluator(trained, split):
        value = next(values) if split == 'validation' else 0.0
        kept[value] = jax.device_get(trained.adapter)
        return {'own': value}

    def stopped(step, metrics):
        del metrics
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # 0.5 at step 2 is in the checkpoint, 0.9 is not
        run(model, task, evaluators=[evaluator], workdir=tmp_path, on_step=[stopped])
    done = run(model, task, evaluators=[evaluator], workdir=tmp_path)
    assert done.best_step == 4 and done.result['best/validation/own'] == 0.6
    assert_same(done.best_adapter, kept[0.6])
    held = peftjax.restore(tmp_path / 'adapter', model).adapter
    assert_same(held, kept[0.6])


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


def test_a_folder_that_holds_a_run_is_refused_where_it_must_be_fresh(model, tmp_path):
    run(model, workdir=tmp_path, resume=False)
    with pytest.raises(ValueError, match='holds a run: choose another workdir'):
        run(model, workdir=tmp_path, resume=False)


@pytest.mark.parametrize('change', [{'seed': 1}, {'best': '-loss'}, {'duration': '12 steps'}])
def test_another_run_is_not_gone_on_with(model, tmp_path, change):
    run(model, workdir=tmp_path)
    with pytest.raises(ValueError, match=f'other settings .*{next(iter(change))}'):
        run(model, workdir=tmp_path, **change)
    fewer = {**TASK.splits, 'train': TASK.splits['train'][:32]}
    with pytest.raises(ValueError, match=r'other settings .*rows.train: 40 -> 32'):
        run(model, dataclasses.replace(TASK, splits=fewer), workdir=tmp_path)


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


class _Failing:
    def __init__(self, when):
        self._when = when

    def write(self, step, values):
        if self._when == 'write' and step >= 5:
            raise OSError('the server is gone')

    def close(self):
        if self._when == 'close':
            raise OSError('the server is gone')


def failing(workdir, settings, resumed_from):
    return _Failing((workdir / '../when').resolve().read_text())


@pytest.mark.parametrize('when', ['write', 'close'])
def test_a_tracker_that_raises_leaves_a_folder_that_goes_on(model, tmp_path, when):
    (tmp_path / 'when').write_text(when)
    with pytest.raises(OSError, match='the server is gone'):
        run(model, workdir=tmp_path / 'run', trackers=['tests.test_fit:failing'])
    again, whole = run(model, workdir=tmp_path / 'run'), run(model)
    assert_same(again.adapter, whole.adapter)


def test_a_run_of_a_model_of_ones_own_says_how_to_read_it(model, tmp_path):
    done = run(model, workdir=tmp_path)
    assert json.loads((tmp_path / 'result.json').read_text()) == dict(done.result)
    assert 'not of a family' in done.result['adapter_peft']
    assert read_arrays(tmp_path / 'adapter').adapter
    with pytest.raises(SettingsError, match='a model of your own; wrap the model again'):
        RunFolder(tmp_path)
    card = (tmp_path / 'README.md').read_text()
    assert 'a model of your own' in card and 'RunFolder' not in card
