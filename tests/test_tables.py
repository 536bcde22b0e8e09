"""Files of tables: every format says the same, and what cannot be read is named."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.train.data import tables
from peftjax.train.settings import DataSettings

ROWS = [{'text': f'fine film {number}', 'label': number % 2} for number in range(40)]


def write_table(path, rows):
    if path.suffix == '.jsonl':
        path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    elif path.suffix == '.csv':
        with path.open('w', encoding='utf-8', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def read_table(source, columns):
    return tables.read_splits(DataSettings(source=str(source)), columns)


@pytest.mark.parametrize('ending', ['.jsonl', '.csv', '.parquet'])
def test_a_table_says_the_same_in_every_format(ending, tmp_path):
    texts = [{**row, 'label': str(row['label'])} for row in ROWS]
    found = read_table(write_table(tmp_path / f'all{ending}', texts), ('text', 'label'))
    assert sorted(row['text'] for rows in found.values() for row in rows) == sorted(
        row['text'] for row in ROWS
    )
    same = read_table(write_table(tmp_path / 'same.jsonl', texts[::-1]), ('text', 'label'))
    assert {name: sorted(map(str, rows)) for name, rows in found.items()} == {
        name: sorted(map(str, rows)) for name, rows in same.items()
    }
    fewer = read_table(write_table(tmp_path / 'fewer.jsonl', texts[:30]), ('text', 'label'))
    assert all(row in found[name] for name, rows in fewer.items() for row in rows)


def test_files_by_split_and_a_data_set_of_the_hub_read_alike(tmp_path):
    for name, rows in (('train', ROWS[:20]), ('validation', ROWS[20:30]), ('test', ROWS[30:])):
        write_table(tmp_path / f'{name}.jsonl', rows)
    found = read_table(str(tmp_path / '{split}.jsonl'), ('text', 'label'))
    assert {name: len(rows) for name, rows in found.items()} == {
        'train': 20,
        'validation': 10,
        'test': 10,
    }
    assert read_table(f'hf:{tmp_path}#{{split}}', ('text', 'label')) == found


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('a.jsonl', b'{"text": "a", "label": 1}\n{', 'a.jsonl, line 2: is not JSON'),
        ('a.jsonl', b'[1]', 'row 1: .* is no object'),
        ('a.jsonl', b'{"sentence": "a"}', r'row 1 has no text, label; its columns are sentence'),
        ('a.csv', b'text,label\n"a', 'a.csv, line 2: not CSV'),
        (
            'a.csv',
            b'text,label\nwell, fine,1',
            r"row 1 has more parts than .* \(text, label\): \['1'\]",
        ),
        ('a.csv', b'text,label\nfine', 'row 1 has no label, up to line 2'),
        (
            'a.csv',
            b'text,label,more\n"fi\nne",1',
            'row 1 has no more, up to line 3: it has 2 parts',
        ),
        ('a.csv', b'text,label,text\na,1,b', "two columns called 'text', among text, label, text"),
        ('a.csv', b'text,label\na,1\n ,0', 'row 2 has an empty text; fill it in'),
        ('a.csv', b'\xff\xfet\x00', 'is not utf-8: .* --data.encoding utf-16'),
        ('a.csv', b'text,label\ncaf\xe9,1', 'a.csv is not utf-8: .* latin-1'),
        (
            'a.jsonl',
            b'{"text": "a", "text": "b", "label": 1}',
            'line 1: has a key that occurs twice',
        ),
        (
            'a.jsonl',
            b'{"text": "\\ud800", "label": 1}',
            r"line 1: has half of a character.*'\\ud800",
        ),
        ('a.jsonl', b'{"text": "a", "label": NaN}', 'line 1: holds NaN'),
        ('a.jsonl', b'{"text": "", "label": 1}', 'row 1 has an empty text'),
        ('a.tsv', b'text\tlabel\n\xe9\t1', 'is not utf-8: .* --data.encoding latin-1'),
        ('a.parquet', b'PAR1 no', 'a.parquet: not Parquet'),
        ('a.txt', b'', 'is none of .jsonl, .csv, .tsv, .parquet'),
        ('a.jsonl', None, 'a.jsonl does not exist'),
        ('a.jsonl', b'', 'has no rows for train'),
    ],
)
def test_tables_that_cannot_be_read_are_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(str(tmp_path / name), ('text', 'label'))


@settings(deadline=20_000, max_examples=60)
@given(content=st.binary(max_size=200), ending=st.sampled_from(['.jsonl', '.csv', '.parquet']))
def test_any_bytes_are_read_or_refused(content, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp('bytes') / f'a{ending}'
    path.write_bytes(content)
    with pytest.raises(ValueError):
        read_table(str(path), ('text', 'label'))


@pytest.mark.parametrize('ending', ['.csv', '.jsonl', '.tsv'])
def test_a_byte_order_mark_is_no_part_of_a_name(ending, tmp_path):
    text = {
        '.csv': 'text,label\n' + ''.join(f'a{i},1\n' for i in range(40)),
        '.tsv': 'text\tlabel\n' + ''.join(f'a{i}\t1\n' for i in range(40)),
        '.jsonl': ''.join(json.dumps({'text': f'a{i}', 'label': '1'}) + '\n' for i in range(40)),
    }[ending]
    for mark in ('', '\ufeff'):
        (tmp_path / f'a{ending}').write_text(mark + text, encoding='utf-8')
        found = read_table(str(tmp_path / f'a{ending}'), ('text', 'label'))
        assert sum(map(len, found.values())) == 40


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path):
    column = pyarrow.array(['a'])
    table = pyarrow.Table.from_arrays([column, column, column], ['text', 'label', 'text'])
    pyarrow.parquet.write_table(table, tmp_path / 'a.parquet')
    with pytest.raises(ValueError, match="two columns called 'text'"):
        read_table(str(tmp_path / 'a.parquet'), ('text', 'label'))


def test_a_hub_source_needs_a_split():
    with pytest.raises(ValueError, match="write 'hf:org/name#{split}'"):
        read_table('hf:org/name', ('text',))
