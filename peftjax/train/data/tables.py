"""Rows of a user's own table: JSON lines, CSV, TSV, Parquet, or a data set of the hub."""

import hashlib
import json
from collections.abc import Iterable, Iterator

from peftjax.train.data.table_files import Record, is_there, read_table
from peftjax.train.readers.registry import first_published, read_published
from peftjax.train.settings import DataSettings

SPLITS = ('train', 'validation', 'test')
_SHARES = (('test', 0.2), ('validation', 0.3), ('train', 1.0))


def read_splits(
    data: DataSettings, columns: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, list[Record]]:
    """The rows of 'train', 'validation' and 'test'.

    A source with `{split}` in it has a table for each split: 'reviews/{split}.jsonl',
    'hf:org/name#{split}', 'hf:org/name:config#{split}'. If there is none for 'validation', a tenth
    of 'train' takes its place; if there is none for 'test', there is no test. A source without
    `{split}` is one table, whose rows are split 70 : 10 : 20. A hash of its content decides the
    split of a row: it is the same on every machine, equal rows are in one split, and no row moves
    when others are added. A published data set (`data.reader`) has the splits of its papers.

    Args:
        data: names the source.
        columns: columns that each row must have.
        optional: columns that are kept too, if a row has them.

    Raises:
        ValueError: a file that does not exist or is of another kind, a line that cannot be read, a
            missing column or an empty text in one, a split without rows.
    """
    columns, optional, source = tuple(columns), tuple(optional), data.source
    if data.reader:
        return read_published(data, columns, optional)
    if '{split}' in source:
        tables = {name: source.replace('{split}', name) for name in SPLITS}
        there = [name for name in SPLITS if name == 'train' or is_there(tables[name])]
        found = {
            name: list(read_table(tables[name], data, columns, optional, empty=False))
            for name in there
        }
        if 'validation' not in found:
            places = [(_place(record), record) for record in found['train']]
            found['validation'] = [record for place, record in places if place < 0.1]
            found['train'] = [record for place, record in places if place >= 0.1]
    else:
        found = {name: [] for name in SPLITS}
        for record in read_table(source, data, columns, optional, empty=False):
            place = _place(record)
            found[next(name for name, end in _SHARES if place < end)].append(record)
    for name, place in data.splits.items():
        found[name] = list(read_table(place, data, columns, optional, empty=False))
    if empty := [name for name, rows in found.items() if not rows]:
        raise ValueError(f'{source} has no rows for {", ".join(empty)}')
    return found


def first_record(data: DataSettings) -> Record:
    """The first row of the training table, with all its columns.

    Raises:
        ValueError: as `read_splits`; the table has no rows.
    """
    if data.reader:
        return first_published(data)
    source = data.source.replace('{split}', 'train')
    found = next(iter(read_table(source, data, ())), None)
    if found is None:
        raise ValueError(f'{source} has no rows')
    return found


def all_records(data: DataSettings, columns: Iterable[str]) -> Iterator[Record]:
    """Every row of all splits, with these columns.

    Raises:
        ValueError: as `read_splits`.
    """
    if data.reader:
        yield from (row for rows in read_published(data, tuple(columns)).values() for row in rows)
        return
    tables = list(dict.fromkeys(data.source.replace('{split}', name) for name in SPLITS))
    for table in [name for name in tables if name == tables[0] or is_there(name)]:
        yield from read_table(table, data, tuple(columns))


def _place(record: Record) -> float:
    """The place of a row between 0 and 1, by a hash of its content."""
    return int.from_bytes(_digest(record)[:8], 'big') / 2**64


def _digest(record: Record) -> bytes:
    text = json.dumps(record, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).digest()
