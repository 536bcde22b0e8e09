"""Rows of a user's own table: JSON lines, CSV, Parquet, or a data set of the Hugging Face hub."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from peftjax.train.optional import library

Record = dict[str, Any]

SPLITS = ('train', 'validation', 'test')
_SHARES = (('test', 0.2), ('validation', 0.3), ('train', 1.0))


def read_splits(source: str, columns: Iterable[str]) -> dict[str, list[Record]]:
    """The rows of 'train', 'validation' and 'test'.

    Args:
        source: with `{split}` in it, a table for each split: 'reviews/{split}.jsonl',
            'hf:org/name#{split}', 'hf:org/name:config#{split}'. Without it, one table, whose rows
            are split 70 : 10 : 20 by a hash of what they hold: the same on every machine, equal
            rows on one side, and no row moves when others are added.
        columns: what each row must have; nothing else is kept.

    Raises:
        ValueError: a file that is not there or of another kind, a line that cannot be read, a
            missing column, a split without rows; by file and line.
    """
    columns = tuple(columns)
    if '{split}' in source:
        found = {name: list(_read(source.replace('{split}', name), columns)) for name in SPLITS}
    else:
        found = {name: [] for name in SPLITS}
        for record in _read(source, columns):
            place = int.from_bytes(_digest(record)[:8], 'big') / 2**64
            found[next(name for name, end in _SHARES if place < end)].append(record)
    if empty := [name for name, rows in found.items() if not rows]:
        raise ValueError(f'{source} has no rows for {", ".join(empty)}')
    return found


def _digest(record: Record) -> bytes:
    text = json.dumps(record, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).digest()


def _read(source: str, columns: tuple[str, ...]) -> Iterable[Record]:
    if source.startswith('hf:'):
        reader, where = _hub, source
    else:
        path = Path(source)
        where = str(path)
        if path.suffix not in _READERS:
            raise ValueError(
                f'{path} is none of {", ".join(_READERS)}; a data set of the hub is written '
                "'hf:org/name#{split}'"
            )
        if not path.is_file():
            raise ValueError(f'{path} does not exist')
        reader = _READERS[path.suffix]
    for number, record in reader(source):
        if not isinstance(record, Mapping):
            raise ValueError(f'{where}, row {number}: {str(record)[:60]!r} is no object')
        if missing := [name for name in columns if record.get(name) is None]:
            raise ValueError(
                f'{where}, row {number} has no {", ".join(missing)}; its columns are '
                f'{", ".join(map(str, record))}; write for example --config.data.columns.'
                f'text={next(iter(record), "sentence")}'
            )
        yield {name: record[name] for name in columns}


def _json_lines(source: str) -> Iterable[tuple[int, Any]]:
    with open(source, encoding='utf-8') as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f'{source}, line {number}: not JSON: {error}') from None


def _csv(source: str) -> Iterable[tuple[int, Any]]:
    with open(source, encoding='utf-8', newline='') as file:
        try:
            yield from enumerate(csv.DictReader(file, strict=True), start=1)
        except csv.Error as error:
            raise ValueError(f'{source}: not CSV: {error}') from None


def _parquet(source: str) -> Iterable[tuple[int, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f'{source}: not Parquet: {error}') from None


def _hub(source: str) -> Iterable[tuple[int, Any]]:
    name, mark, split = source.removeprefix('hf:').partition('#')
    name, _, config = name.partition(':')
    if not mark or not split:
        raise ValueError(f"{source} names no split; write 'hf:{name}#{{split}}'")
    datasets = library('datasets', 'datasets', source)
    try:
        table = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError) as error:  # what the library's own errors are
        raise ValueError(f'{source}: {error}') from None
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            # Its file as it is, bytes and all: a decoded picture has no stable hash.
            table = table.cast_column(column, datasets.Image(decode=False))
    yield from enumerate(table, start=1)


_READERS: Mapping[str, Callable[[str], Iterable[tuple[int, Any]]]] = {
    '.jsonl': _json_lines,
    '.csv': _csv,
    '.parquet': _parquet,
}
