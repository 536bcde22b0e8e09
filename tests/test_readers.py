"""Readers of published data sets, on small files of ours in their layouts."""

import csv
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from peftjax.train.data.tables import read_splits
from peftjax.train.readers.glue import GLUE
from peftjax.train.readers.registry import READERS, layout_of
from peftjax.train.settings import DataSettings, SettingsError
from peftjax.train.tasks.registry import TASKS
from tests import paper_files


def _task_of(reader: str) -> str:
    """The task that learns what a reader gives."""
    if reader.endswith('_words') or reader == 'xsum':
        return 'seq2seq'
    if reader.endswith('_choices'):
        return 'choices'
    if reader.startswith(('glue', 'superglue')):
        name = reader.removesuffix('_halves')
        single = {'glue_cola': 'classification', 'glue_sst2': 'classification'}
        return single.get(name, 'pair_regression' if name == 'glue_stsb' else 'pairs')
    return 'instructions'


def _all(reader: str, folder: Path) -> dict:
    return read_splits(paper_files.data_settings(folder, reader), TASKS[_task_of(reader)].columns)


@pytest.mark.parametrize('reader', READERS)
def test_a_data_set_is_read_with_the_columns_of_its_task(reader, tmp_path):
    found = _all(reader, tmp_path)
    assert all(found.values()) and 'train' in found
    roles = set(TASKS[_task_of(reader)].columns)
    for rows in found.values():
        for row in rows:
            assert roles <= set(row)
            assert not {'idx', 'id'} & set(row)
    layout = layout_of(reader)
    if layout.classes:
        labels = {row['label'] for row in found['train']}
        assert labels == set(layout.classes)


@pytest.mark.parametrize('name', GLUE)
def test_the_files_of_glue_say_the_same_as_the_tables_of_the_hub(name, tmp_path):
    hub, folder, task = tmp_path / 'hub', tmp_path / 'tsv', GLUE[name]
    expected = _all(f'glue_{name}', hub)
    folder.mkdir()
    for split, file in (('train', 'train'), ('validation', 'dev'), ('test', 'test')):
        if name == 'mnli' and split == 'validation':
            _tsv(folder / 'dev_matched.tsv', task)
            _tsv(folder / 'dev_mismatched.tsv', task)
        else:
            _tsv(folder / f'{file}.tsv', task)
    data = DataSettings(source=str(folder), reader=f'glue_{name}')
    assert read_splits(data, ['text', 'label']) == {
        split: [{'text': row['text'], 'label': row['label']} for row in rows]
        for split, rows in expected.items()
    }


def _tsv(path: Path, task) -> None:
    """The rows as GLUE's archive has them: quotes are text, MNLI's labels are names."""
    rows = paper_files.rows_of(f'glue_{next(name for name in GLUE if GLUE[name] is task)}')
    named = task is GLUE['mnli']
    columns = [*task.texts, 'label']
    with path.open('w', encoding='utf-8-sig' if task is GLUE['mrpc'] else 'utf-8') as file:
        if not isinstance(task.tsv[0], int):
            file.write('\t'.join(['index', *map(str, task.tsv)]) + '\n')
        for number, row in enumerate(rows):
            label = task.classes[row['label']] if named else row['label']
            cells = [str(label if each == 'label' else row[each]) for each in columns]
            if isinstance(task.tsv[0], int):
                cells = ['gj04', cells[1], '', cells[0]]
            else:
                cells = [str(number), *cells]
            file.write('\t'.join(cells) + '\n')


def test_quotes_of_tsv_files_are_text_and_lines_cut_short_are_told(tmp_path):
    (tmp_path / 'train.tsv').write_text('sentence\tlabel\nsay "cheese\t1\nplain\t0\n')
    (tmp_path / 'dev.tsv').write_text('sentence\tlabel\nfine\t1\n')
    data = DataSettings(source=str(tmp_path), reader='glue_sst2')
    assert read_splits(data, ['text'])['train'][0] == {'text': 'say "cheese'}
    (tmp_path / 'dev.tsv').write_text('sentence\tlabel\nfine\n')
    with pytest.raises(ValueError, match="dev.tsv, row 1: 'fine.*' is cut short"):
        read_splits(data, ['text'])
    (tmp_path / 'dev.tsv').write_text('text\tlabel\nfine\t1\n')
    with pytest.raises(ValueError, match="no column 'sentence'; its columns are"):
        read_splits(data, ['text'])
    (tmp_path / 'dev.tsv').unlink()
    with pytest.raises(ValueError, match=r'dev\.tsv does not exist'):
        read_splits(data, ['text'])


def test_mnli_has_two_splits_that_are_scored(tmp_path):
    data = paper_files.data_settings(tmp_path, 'glue_mnli')
    paper_files.lines(
        tmp_path / 'validation_mismatched.jsonl', paper_files.rows_of('glue_mnli', count=4)
    )
    found = read_splits(data, ['text', 'second', 'label'])
    assert list(found) == ['train', 'validation', 'validation_mismatched']
    assert len(found['validation']) == 12 and len(found['validation_mismatched']) == 4


def test_secret_labels_are_left_out_and_wrong_ones_are_told(tmp_path):
    data = paper_files.data_settings(tmp_path, 'glue_rte')
    rows = paper_files.rows_of('glue_rte')
    paper_files.lines(tmp_path / 'validation.jsonl', [{**rows[0], 'label': -1}, *rows[1:]])
    assert len(read_splits(data, ['text'])['validation']) == 11
    for label in (2, -2, 'entailment', True, 0.5):
        paper_files.lines(tmp_path / 'validation.jsonl', [{**rows[0], 'label': label}])
        with pytest.raises(ValueError, match='rte: label .* is none of 0 to 1'):
            read_splits(data, ['text'])
    paper_files.lines(tmp_path / 'validation.jsonl', [{**rows[0], 'label': -1}])
    with pytest.raises(ValueError, match='has no rows for validation'):
        read_splits(data, ['text'])


def test_halves_of_the_development_split_are_the_same_whatever_its_order(tmp_path):
    data = paper_files.data_settings(tmp_path, 'glue_rte_halves')
    first = read_splits(data, ['text', 'second', 'label'])
    rows = paper_files.rows_of('glue_rte_halves')
    paper_files.lines(tmp_path / 'validation.jsonl', rows[::-1])
    second = read_splits(data, ['text', 'second', 'label'])
    for split in ('validation', 'test'):
        assert len(first[split]) == 6
        assert sorted(map(str, first[split])) == sorted(map(str, second[split]))
    texts = [{row['text'] + row['second'] for row in first[s]} for s in ('validation', 'test')]
    assert not texts[0] & texts[1]


def test_rows_that_are_held_out_are_in_no_other_split_and_equal_rows_stay_together(tmp_path):
    data = paper_files.data_settings(tmp_path, 'alpaca')
    rows = paper_files.rows_of('alpaca', count=40)
    paper_files.lines(tmp_path / 'train.jsonl', [*rows, *rows])
    found = read_splits(data, ['prompt', 'answer'])
    train, held = ({str(row) for row in found[name]} for name in ('train', 'validation'))
    assert not train & held and len(train) + len(held) == 40
    assert 4 <= len(held) <= 8


def test_a_text_for_the_same_meaning_is_a_further_reference(tmp_path):
    found = _all('e2e', tmp_path)
    assert len(found['train']) == 12 and len(found['test']) == 6
    assert found['train'][0]['prompt'] == 'name : place 0 | eatType : pub'
    row = found['test'][0]
    assert len(row['references']) == 2 and row['answer'] == row['references'][0]


def test_the_files_of_the_e2e_challenge_say_the_same_as_the_tables_of_the_hub(tmp_path):
    expected = _all('e2e', tmp_path / 'hub')
    folder = tmp_path / 'csv'
    folder.mkdir()
    for name in ('trainset', 'devset', 'testset_w_refs'):
        with (folder / f'{name}.csv').open('w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(['mr', 'ref'])
            for row in paper_files.rows_of('e2e'):
                writer.writerow([row['meaning_representation'], row['human_reference']])
    data = DataSettings(source=str(folder), reader='e2e')
    assert read_splits(data, ['prompt', 'answer']) == expected
    (folder / 'devset.csv').write_text('mr,text\na,b\n')
    with pytest.raises(ValueError, match='row 1 has no mr or no ref'):
        read_splits(data, ['prompt', 'answer'])


def test_words_around_the_texts():
    def made(reader: str, row: dict[str, Any]) -> dict[str, Any]:
        found = READERS[reader].record(row)
        assert found is not None
        return found

    row = paper_files.rows_of('superglue_rte')[1]
    text = f'rte hypothesis: {row["hypothesis"]} premise: {row["premise"]}'
    assert made('superglue_rte_words', row) == {'text': text, 'answer': 'not_entailment'}
    few = made('superglue_rte_choices', row)
    assert few['choices'] == ['Yes', 'No'] and few['label'] == 1
    assert row['premise'] in few['text'] and few['text'].endswith('Yes or no?')
    paired, plain = (made('alpaca', each)['prompt'] for each in paper_files.rows_of('alpaca')[:2])
    assert '### Input' in paired and '### Input' not in plain
    dart = made('dart', paper_files.rows_of('dart')[0])
    assert dart['prompt'].count(' : ') == 4 and dart['prompt'].count(' | ') == 1


def test_parquet_of_the_hub_reads_as_its_json(tmp_path):
    expected = _all('glue_qnli', tmp_path)
    for split in ('train', 'validation'):
        rows = paper_files.rows_of('glue_qnli')
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f'{split}.parquet')
    data = DataSettings(source=str(tmp_path / '{split}.parquet'), reader='glue_qnli')
    assert read_splits(data, ['text', 'second', 'label']) == expected


@pytest.mark.parametrize('content', ['', '{}', '[1]', '[{"instruction": 1}]', '[' * 100_000])
def test_files_of_commonsense_that_are_no_arrays_of_examples_are_told(content, tmp_path):
    data = paper_files.data_settings(tmp_path, 'commonsense_170k')
    (tmp_path / 'dataset' / 'piqa' / 'test.json').write_text(content)
    with pytest.raises(ValueError, match=r'piqa/test\.json'):
        read_splits(data, ['prompt'])


def test_wrong_names_are_told(tmp_path):
    data = paper_files.data_settings(tmp_path, 'glue_rte')
    with pytest.raises(SettingsError, match="no reader 'glue_ret'; near names: .*glue_rte"):
        read_splits(DataSettings(source=data.source, reader='glue_ret'), ['text'])
    with pytest.raises(SettingsError, match="reader 'glue_rte' gives .*, and no 'answer'"):
        read_splits(data, ['text', 'answer'])
    other = DataSettings(source=data.source, reader='glue_rte', splits={'test': 'x.jsonl'})
    with pytest.raises(ValueError, match=r'leave data\.splits\.test out'):
        read_splits(other, ['text'])
