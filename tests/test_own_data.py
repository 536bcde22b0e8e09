"""A user's own tables, from the file to the step of a model."""

import inspect
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

import peftjax
from configs import own_data as own_config
from peftjax.interop.checkpoints import tokenizer as interop
from peftjax.train.data import batches as data
from peftjax.train.data import tables
from peftjax.train.fitting import train
from peftjax.train.settings import DataSettings, Settings, read_settings
from peftjax.train.tasks import base
from peftjax.train.tasks.infer import infer
from peftjax.train.tasks.registry import find_task
from tests.test_tables import write_table
from tests.tiny_runs import SPECIAL, WORDS, checkpoint

ROWS = [{'text': f'fine film {number}', 'label': number % 2} for number in range(40)]
TEMPLATE = (
    '{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}'
    '{% if add_generation_prompt %}<|im_start|> assistant {% endif %}'
)


def _tokenizer(template=TEMPLATE):
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, *WORDS, 'user', 'assistant'])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single='$A [PAD]', pair='$A [PAD] $B:1 [PAD]:1', special_tokens=[('[PAD]', 0)]
    )
    return interop.Tokenizer(backend, chat_template=template)


def _splits(task, source, template=TEMPLATE, num_labels=None, **fields):
    """The rows of a table, as a task makes them with a tokenizer of whole words."""
    typed = inspect.signature(lambda token_type_ids: token_type_ids)
    model = peftjax.testing.tiny_mlp().replace(tokenizer=_tokenizer(template), signature=typed)
    fields = {'lengths': (16,), **fields}
    given = Settings(task=task, data=DataSettings(source=source, **fields))
    given = given.change({'model.num_labels': num_labels})
    return find_task(task)(infer(given.change({'methods': ['full']})), model).splits


def test_texts_and_pairs_keep_their_special_tokens_when_cut(tmp_path):
    rows = [{'text': ' '.join(['fine'] * n), 'text2': 'dull', 'label': n % 2} for n in range(1, 60)]
    source = write_table(tmp_path / 'a.jsonl', rows)
    single = _splits('classification', source)
    longest = max(single['train'], key=lambda row: len(row['input_ids']))
    assert len(longest['input_ids']) == 16 and longest['input_ids'][-1] == 0
    assert longest['segment_ids'].tolist() == [1] * 16 and 'token_type_ids' not in longest
    named: Any
    for named in ({}, {'columns': {'second': 'text2'}}):
        pairs = _splits('classification' if named else 'pairs', source, **named)
        row = max(pairs['train'], key=lambda row: len(row['input_ids']))
        assert row['token_type_ids'].tolist() == [0] * 14 + [1] * 2
        assert base.encoder_inputs(data.collate([row], (16,)))['token_type_ids'].shape == (1, 16)


def test_class_names_and_numbers_become_targets(tmp_path):
    named = [{'text': 'fine', 'label': ('bad', 'good')[n % 2], 'n': n} for n in range(60)]
    source = write_table(tmp_path / 'a.jsonl', [{**r, 'text': f'fine {r["n"]}'} for r in named])
    rows = _splits('classification', source, labels=('bad', 'good'))
    assert {int(row['targets']) for row in rows['train']} == {0, 1}
    with pytest.raises(ValueError, match="label '(bad|good)' is none of 0 to 1; set"):
        _splits('classification', source, num_labels=2)


def test_the_loss_of_instructions_is_on_the_answer_alone(tmp_path):
    rows = [{'prompt': f'is film {n} fine', 'answer': 'the plot was dull'} for n in range(40)]
    source = write_table(tmp_path / 'a.jsonl', rows)
    tokenizer = _tokenizer()
    row = _splits('instructions', source)['train'][0]
    answer = row['targets'][row['weights'] == 1].tolist()
    assert tokenizer.decode(answer, skip_special_tokens=False) == 'the plot was dull <|im_end|>'
    conversations = [
        {'messages': [{'role': 'user', 'content': r['prompt']}, _answer(r['answer'])]} for r in rows
    ]
    source = write_table(tmp_path / 'b.jsonl', conversations)
    other = _splits('conversations', source)
    assert any(
        np.array_equal(row['input_ids'], each['input_ids'])
        for split in other.values()
        for each in split
    )
    again = write_table(tmp_path / 'a.jsonl', rows)
    packed = _splits('instructions', again, packing=True, lengths=(64,))['train'][0]
    assert packed['segment_ids'].max() > 1 and len(packed['input_ids']) == 64


def _answer(text, role='assistant'):
    return {'role': role, 'content': text}


@pytest.mark.parametrize(
    ('template', 'messages', 'message'),
    [
        (None, [_answer('a', 'user'), _answer('b')], 'has no chat template'),
        ('{{ messages[-1].content }}', [_answer('a', 'user'), _answer('b')], 'where the answer'),
        (TEMPLATE, [_answer('a')], 'a conversation is a list of at least two'),
        (TEMPLATE, [_answer('a'), _answer('b', 'user')], "ends with the role 'user'; its last"),
        ('{% for %}', [_answer('a', 'user'), _answer('b')], 'cannot be read'),
        ('{{ raise_exception("no") }}', [_answer('a', 'user'), _answer('b')], 'cannot write'),
        (
            '{{ messages.__class__.__mro__[1].__subclasses__() }}',
            [_answer('a', 'user'), _answer('b')],
            'cannot write',
        ),
        (
            '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
            [_answer('a', 'user'), _answer('b')],
            r'takes more than 2 s to write .*a.*b',
        ),
        ('{{ 9**(9**9) }}', [_answer('a', 'user'), _answer('b')], 'more than 2 s'),
        ('{{ "a" * 10**10 }}', [_answer('a', 'user'), _answer('b')], 'MemoryError'),
        ('{{ "ab" * 10**6 }}', [_answer('a', 'user'), _answer('b')], 'writes 2000000 characters'),
        (TEMPLATE, [_answer('a', 'user'), {**_answer('b'), 'when': b'c'}], 'that JSON cannot'),
    ],
)
def test_conversations_that_cannot_be_written_are_refused(template, messages, message, tmp_path):
    rows = [{'messages': messages, 'n': n} for n in range(3)]
    for split in tables.SPLITS:
        write_table(tmp_path / f'{split}.parquet', rows)
    source = str(tmp_path / '{split}.parquet')
    with pytest.raises(ValueError, match=message):
        _splits('conversations', source, template)


def test_a_decoder_starts_with_its_token_and_is_weighed_where_it_writes(tmp_path):
    rows = [{'source': f'fine film {n} is fine', 'target': 'dull'} for n in range(40)]
    source = write_table(tmp_path / 'a.jsonl', rows)
    row = _splits('seq2seq', source)['train'][0]
    dull = len(SPECIAL) + WORDS.index('dull')
    assert row['decoder_input_ids'].tolist()[:2] == [0, dull]
    assert row['targets'].tolist()[:3] == [dull, 0, 0]
    assert row['weights'].tolist() == [1, 1, 0, 0, 0, 0]
    inputs = base.seq2seq_inputs(data.collate([row], (8,)))
    assert inputs['attention_mask'].sum() == 6 and inputs['decoder_attention_mask'].sum() == 2


def _pictures(folder, count=40, side=20):
    """Squares that are bright or dark, as files and as bytes."""
    generator, rows = np.random.default_rng(0), []
    for number in range(count):
        pixels = generator.integers(0, 90, (side, side, 3)) + 150 * (number % 2)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, 'PNG')
        (folder / f'{number}.png').write_bytes(file.getvalue())
        rows.append({'image': f'{number}.png', 'label': number % 2, 'bytes': file.getvalue()})
    return rows


def test_images_are_read_when_they_are_asked_for(tmp_path):
    rows = _pictures(tmp_path)
    source = write_table(
        tmp_path / 'a.jsonl', [{k: r[k] for k in ('image', 'label')} for r in rows]
    )
    options = {'size': 20, 'mean': (0.5, 0.5, 0.5), 'std': (0.25, 0.25, 0.25)}
    found = _splits('images', source, options=options)
    row = found['train'][0]
    assert row['pixel_values'].shape == (3, 20, 20) and row['pixel_values'].dtype == np.float32
    assert (row['pixel_values'].mean() > 0) == (row['targets'] == 1)
    for file in tmp_path.glob('*.png'):
        file.unlink()
    with pytest.raises(ValueError, match='cannot be read'):
        found['train'][0]
    held = write_table(
        tmp_path / 'a.parquet',
        [{'image': {'bytes': r['bytes']}, 'label': r['label']} for r in rows],
    )
    within = _splits('images', held, options=options)
    assert any(
        np.array_equal(row['pixel_values'], each['pixel_values'])
        for split in within.values()
        for each in split
    )


def test_an_image_outside_the_tables_folder_is_refused(tmp_path):
    (tmp_path / 'inner').mkdir()
    _pictures(tmp_path, 1)
    rows = [{'image': '../0.png', 'label': 0}]
    for split in tables.SPLITS:
        write_table(tmp_path / 'inner' / f'{split}.jsonl', rows)
    source = str(tmp_path / 'inner' / '{split}.jsonl')
    found = _splits('images', source, num_labels=2)
    with pytest.raises(ValueError, match='lies outside'):
        found['train'][0]


TEXT_OF = [{'source': r['text'], 'target': ('dull', 'witty')[r['label']]} for r in ROWS]
TASKS = {
    'classification': ('tiny_bert', ROWS),
    'pairs': ('tiny_bert', [{**r, 'sentence1': r['text'], 'sentence2': 'dull'} for r in ROWS]),
    'regression': ('tiny_bert', [{**r, 'label': r['label'] + 0.5} for r in ROWS]),
    'token_classification': (
        'tiny_bert',
        [{'tokens': r['text'].split(), 'tags': ['O', 'B-F', 'I-F']} for r in ROWS],
    ),
    'seq2seq': ('tiny_t5', TEXT_OF),
    'text': ('tiny_llama', ROWS),
    'instructions': (
        'tiny_llama',
        [{'instruction': r['source'], 'input': 'is', 'output': r['target']} for r in TEXT_OF],
    ),
    'images': ('tiny_vit', ROWS),
}


DECODERS = {'pairs': 'tiny_llama', 'regression': 'tiny_gpt2', 'token_classification': 'tiny_llama'}


@pytest.mark.sampled
@pytest.mark.parametrize(
    ('task', 'golden'),
    [*((task, golden) for task, (golden, _) in TASKS.items()), *DECODERS.items()],
)
def test_every_kind_of_table_trains_and_answers_with_nothing_named(task, golden, tmp_path):
    rows = TASKS[task][1]
    if task == 'images':
        rows = [{k: row[k] for k in ('image', 'label')} for row in _pictures(tmp_path, side=12)]
    source = write_table(tmp_path / 'rows.jsonl', rows)
    folder = checkpoint(tmp_path / 'base', golden)
    (folder / 'tokenizer_config.json').write_text(json.dumps({'chat_template': TEMPLATE}))
    options = {'size': 12} if task == 'images' else {}
    if task in ('seq2seq', 'instructions'):
        options = {'generated': ('exact_match',), 'generated_limit': 2}
    if task in ('seq2seq', 'instructions', 'text'):
        options['max_new_tokens'] = 4
    settings = read_settings(own_config.get_config(f'task={task},rank=2')).change(
        {
            **{'model.source': str(folder), 'data.source': source, 'data.batch_size': 4},
            **{'data.options': options, 'duration': '4 steps', 'trackers': []},
        }
    )
    fit = train(settings, tmp_path / 'run', Console(quiet=True))
    assert np.isfinite(fit.result['test/loss'])
    assert ('test/exact_match' in fit.result) == ('generated' in options)
    found = peftjax.train.predict(
        fit.model, fit.transform, fit.adapter, fit.frozen, fit.task, rows[:3]
    )
    names = {'images': {'label', 'score'}, 'regression': {'value'}, 'text': {'text'}}
    names |= {'seq2seq': {'text'}, 'instructions': {'text'}, 'token_classification': {'tags'}}
    assert [set(each) for each in found] == [names.get(task, {'label', 'score'})] * 3


def test_the_order_is_that_of_seed_and_step_for_images_too(tmp_path):
    source = write_table(
        tmp_path / 'a.jsonl', [{k: r[k] for k in ('image', 'label')} for r in _pictures(tmp_path)]
    )
    options = {'size': 4, 'mean': (0.0,) * 3, 'std': (1.0,) * 3}
    rows = _splits('images', source, options=options)['train']

    def batches():
        return data.train_batches(rows, batch_size=4, lengths=(), seed=3, steps=6)

    whole = [part.rows['pixel_values'] for part in batches()]
    first = batches()
    for _ in range(2):
        next(first)
    resumed = batches()
    resumed.set_state(first.get_state())
    np.testing.assert_array_equal(
        np.stack([part.rows['pixel_values'] for part in resumed]), whole[2:]
    )


def test_a_pattern_that_does_not_come_to_an_end_is_an_error():
    backend = Tokenizer(models.WordLevel({'a': 0}, 'a'))
    pattern = Regex(r'(a+)+\1c')
    backend.pre_tokenizer = pre_tokenizers.Split(pattern, 'isolated')
    with pytest.raises(ValueError, match="tokenizer.json does not come to an end on 'aaa"):
        interop.Tokenizer(backend).encode('a' * 40)


def test_half_of_a_character_is_refused_when_a_text_is_cut():
    backend = Tokenizer(models.WordLevel({'a': 0}, 'a'))
    with pytest.raises(ValueError, match='no text that can be encoded'):
        base.cutting(interop.Tokenizer(backend), 4).encode('\ud800')
