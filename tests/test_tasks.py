"""Tasks: what they find in data, what they count, and their losses on a tiny model."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.train.data.batches import collate
from peftjax.train.settings import DataSettings, Settings, SettingsError
from peftjax.train.task import Beside, Forward, Trained
from peftjax.train.tasks import base
from peftjax.train.tasks.columns import find_classes, find_columns
from peftjax.train.tasks.infer import infer
from peftjax.train.tasks.registry import find_task, head_of
from tests.tiny_runs import checkpoint

TREC = ('ABBR', 'DESC', 'ENTY', 'HUM', 'LOC', 'NUM')


def _settings(tmp_path, golden, task, source, **data):
    folder = tmp_path / golden
    if not folder.exists():
        checkpoint(folder, golden)
        template = '<|im_start|> {% for m in messages %}{{ m.content }} {% endfor %}'
        (folder / 'tokenizer_config.json').write_text(json.dumps({'chat_template': template}))
    given = Settings(task=task, data=DataSettings(source=str(source), **data))
    return given.change({'model.source': str(folder)})


def _made(settings):
    """The inferred settings, the model, and the task."""
    found = infer(settings)
    arguments = {**found.model.arguments(), 'task': head_of(found.task)}
    model = peftjax.load(**arguments, key=jax.random.key(0))
    return found, model, find_task(found.task)(found, model)


def _forward(model):
    """The model without an adapter, as a loss function runs it."""
    transform = peftjax.chain()
    adapter, frozen = transform.init(jax.random.key(0), model)
    predict = peftjax.adapt(model, transform)
    return Forward(predict, predict, adapter, Beside(frozen), None)


def _rows(count=60, longest=9):
    return [
        {'text': ' '.join(['fine', 'dull'][n % 2 :] + ['film'] * (n % longest)), 'n': n}
        for n in range(count)
    ]


def _csv(path, rows, encoding='utf-8', **form):
    with path.open('w', encoding=encoding, newline='') as file:
        writer = csv.DictWriter(file, rows[0], **form)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_spam_messages_need_a_source_alone(tmp_path):
    rows = [
        {'Category': ('ham', 'spam')[n % 2], 'Message': f'fine, "grand" {n}'} for n in range(60)
    ]
    source = _csv(tmp_path / 'sms.csv', rows)
    found, _, task = _made(_settings(tmp_path, 'tiny_bert', 'classification', source))
    assert found.data.columns == {'text': 'Message', 'label': 'Category'}
    assert found.data.labels == task.classes == ('ham', 'spam')
    assert found.model.num_labels == 2 and 'select' in found.methods
    assert found.data.lengths and sum(map(len, task.splits.values())) == 60
    assert task.notes == () and infer(found) == found
    assert task.answer is not None and task.row is not None
    answer = task.answer({'logits': np.asarray([0.0, np.log(3.0)])})
    assert answer['label'] == 'spam' and answer['score'] == pytest.approx(0.75)
    assert set(task.row({'Message': 'fine'})) == {'input_ids', 'segment_ids'}


@pytest.mark.parametrize('ending', ['.csv', '.tsv'])
def test_questions_in_latin_letters_are_read_by_split(ending, tmp_path):
    form = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE} if ending == '.tsv' else {}
    for split, count in (('train', 60), ('test', 12)):
        rows = [{'text': f'où est "le" film {n}', 'label': TREC[n % 6]} for n in range(count)]
        _csv(
            tmp_path / f'{split}{ending}',
            rows,
            'latin-1',
            **form,
            **({'quotechar': None} if form else {}),
        )
    source = tmp_path / f'{{split}}{ending}'
    settings = _settings(tmp_path, 'tiny_bert', 'classification', source)
    with pytest.raises(ValueError, match=r'is not utf-8: .* --data.encoding latin-1'):
        infer(settings)
    found, _, task = _made(settings.change({'data.encoding': 'latin-1'}))
    assert found.data.labels == TREC and found.model.num_labels == 6
    sizes = {name: len(rows) for name, rows in task.splits.items()}
    assert sizes['test'] == 12 and sizes['train'] + sizes['validation'] == 60
    assert 0 < sizes['validation'] < 20


def test_a_table_without_a_header_is_refused_and_read_by_its_names(tmp_path):
    (tmp_path / 'a.csv').write_text('\n'.join(f'{"ab"[n % 2]},fine {n}' for n in range(60)))
    settings = _settings(tmp_path, 'tiny_bert', 'classification', tmp_path / 'a.csv')
    with pytest.raises(SettingsError, match='if the first line is data, --data.header text,label'):
        infer(settings)
    assert infer(settings.change({'data.header': ['label', 'text']})).data.labels == ('a', 'b')


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        ([0.5, 1.0], '--task regression'),
        (['0.5', '1'], '--task regression'),
        (range(1001), 'has 1001 different labels'),
        (['a', 'a'], 'has only the label a'),
        (['a', ' '], 'has an empty label'),
        (['a', None], 'is no name'),
        ([['a'], 'b'], 'is no name'),
        (['a', 0.5], 'one is the number 0.5'),
        ([1, '1', 2], 'the same number as a number and as a text'),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(SettingsError, match=message):
        find_classes(DataSettings(source='a.csv'), labels)


def test_classes_are_in_the_order_of_numbers_or_of_the_alphabet():
    data = DataSettings()
    assert find_classes(data, ['10', '9', '1']) == ('1', '9', '10')
    assert find_classes(data, [True, False]) == ('False', 'True')
    assert find_classes(data, ['b', 'a', '1']) == ('1', 'a', 'b')


def test_a_column_of_a_role_that_no_task_reads_is_refused():
    data = DataSettings(columns={'texts': 'a'})
    with pytest.raises(SettingsError, match='data.columns.texts: this task reads text, label, sec'):
        find_columns(data, {'a': 1, 'label': 2}, ('text', 'label'), named=('second',))
    found = find_columns(DataSettings(), {'text': 1, 'label': 2, 'context': 3}, ('text', 'label'))
    assert found == {'text': 'text', 'label': 'label'}


@pytest.mark.parametrize('name', ['nowhere:f', ':f', '.a:f', 'math:no_such'])
def test_tasks_that_cannot_be_read_are_named(name):
    with pytest.raises(SettingsError, match='cannot be read'):
        find_task(name)


def test_only_texts_that_lost_tokens_are_counted_as_cut(tmp_path):
    rows = [{**row, 'label': row['n'] % 3} for row in _rows()]
    source = _csv(tmp_path / 'a.csv', rows)
    settings = _settings(tmp_path, 'tiny_bert', 'classification', source, lengths=(10,))
    assert _made(settings)[2].notes == ()  # the longest has ten
    lost = sum(len(row['text'].split()) > 8 for row in rows)
    _, _, task = _made(settings.change({'data.lengths': [8]}))
    assert task.notes == (f'{lost} of 60 texts were cut at 8 tokens',) and lost > 5
    assert max(len(row['input_ids']) for rows in task.splits.values() for row in rows) == 8


def test_answers_that_were_cut_away_are_counted_and_left_out(tmp_path):
    rows = [{'prompt': ' '.join(['film'] * n), 'answer': 'fine dull'} for n in range(1, 61)]
    source = _csv(tmp_path / 'a.csv', rows)
    settings = _settings(tmp_path, 'tiny_llama', 'instructions', source, lengths=(32,))
    _, _, task = _made(settings)
    kept = [row for split in task.splits.values() for row in split]
    # A start token and the prompt's n, then two of the answer; the last one needs no input.
    cut, gone = sum(n + 2 > 32 for n in range(1, 61)), sum(n + 1 > 32 for n in range(1, 61))
    assert len(kept) == 60 - gone and all(row['weights'].any() for row in kept)
    assert task.notes == (
        f'{cut} of 60 examples were cut at 32 tokens; {gone} of them lost their whole answer '
        'and were left out',
    )


def test_the_smoothed_loss_is_that_of_the_smoothed_distribution():
    logits = jax.random.normal(jax.random.key(0), (4, 5))
    batch = {'targets': jnp.asarray([1, 4, -100, 2]), 'weights': jnp.asarray([1.0, 2.0, 1.0, 0.0])}
    found = base.weighted_totals(logits, batch, 0.2)
    target = 0.8 * jax.nn.one_hot(batch['targets'], 5) + 0.2 / 5
    losses = -(target * jax.nn.log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(found['loss'], losses[0] + 2 * losses[1], rtol=1e-6)
    assert found['weights'] == 3.0


@pytest.mark.sampled
@pytest.mark.parametrize('task', ['classification', 'text', 'token_classification'])
def test_smoothing_and_padding_change_what_they_should_alone(task, tmp_path):
    golden = 'tiny_llama' if task == 'text' else 'tiny_bert'
    rows = [{**row, 'label': row['n'] % 3} for row in _rows()]
    if task == 'token_classification':
        rows = [{'words': r['text'], 'tags': ' '.join('AB'[w == 'film'] for w in r['text'].split())}
                for r in rows]  # fmt: skip
    source = _csv(tmp_path / 'a.csv', rows)
    settings = _settings(tmp_path, golden, task, source, lengths=(16,))
    _, model, plain = _made(settings)
    _, _, smooth = _made(settings.change({'data.options': {'label_smoothing': 0.1}}))
    forward, made = _forward(model), plain.splits['train'][:4]
    first, wider = (collate(made, (length,)) for length in (16, 24))
    one = plain.totals(forward, first)
    for other in (plain.totals(forward, wider), _doubled(plain, forward, first)):
        for name, total in one.items():
            np.testing.assert_allclose(other[name], total, rtol=1e-4, err_msg=name)
    smoothed = smooth.totals(forward, first)
    assert smoothed['accuracy'] == one['accuracy'] and smoothed['weights'] == one['weights']
    assert abs(smoothed['loss'] - one['loss']) > 1e-4


def _doubled(task, forward, batch):
    """The totals of a batch with copies of weight 0 behind it."""
    copies = {**batch, 'weights': np.zeros_like(batch['weights'])}
    return task.totals(forward, {n: np.concatenate([v, copies[n]]) for n, v in batch.items()})


def test_scores_of_written_texts_are_those_of_the_generator(tmp_path):
    rows = [{'prompt': f'fine film {"a " * n}', 'answer': 'dull'} for n in range(40)]
    source = _csv(tmp_path / 'a.csv', [{**row, 'n': n} for n, row in enumerate(rows)])
    options = {'generated': ['exact_match', 'rougeL'], 'generated_limit': 3, 'max_new_tokens': 4}
    settings = _settings(tmp_path, 'tiny_llama', 'instructions', source, options=options)
    _, model, task = _made(settings)
    transform = peftjax.chain()
    trained = Trained(model, transform, *transform.init(jax.random.key(0), model), task)
    [evaluator] = task.evaluators
    scores = evaluator(trained, 'validation')
    assert set(scores) == {'exact_match', 'rougeL'} and scores == evaluator(trained, 'validation')
    assert evaluator(trained, 'nothing') == {}
    assert task.predict is not None
    [answer] = task.predict(trained, [{'prompt': 'fine film'}])
    tokens = model.tokenizer.encode('<|im_start|> fine film')
    whole = peftjax.generator(model)((), trained.frozen, jnp.asarray([tokens]), max_new_tokens=4)
    assert answer == {'text': model.tokenizer.decode(np.asarray(whole)[0].tolist()).strip()}
    with pytest.raises(SettingsError, match="generated names 'blue'; write some of exact_match"):
        find_task('instructions')(
            infer(settings).change({'data.options.generated': ['blue']}), model
        )
    with pytest.raises(ValueError, match='write a smaller --data.options.max_new_tokens'):
        task.predict(trained, [{'prompt': 'fine ' * 5000}])
