"""Rows of a user's own table: JSON lines, CSV, TSV, Parquet, or a data set of the hub."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from peftjax.train.optional import library
from peftjax.train.settings import DataSettings

Record = dict[str, Any]

SPLITS = ('train', 'validation', 'test')
_SHARES = (('test', 0.2), ('validation', 0.3), ('train', 1.0))


def read_splits(
    data: DataSettings, columns: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, list[Record]]:
    """The rows of 'train', 'validation' and 'test'.

    A source with `{split}` in it has a table for each split: 'reviews/{split}.jsonl',
    'hf:org/name#{split}', 'hf:org/name:config#{split}'. Where there is none for 'validation', a
    tenth of 'train' takes its place; where there is none for 'test', there is no test. A source
    without `{split}` is one table, whose rows are split 70 : 10 : 20. Both by a hash of what a row
    holds: the same on every machine, equal rows on one side, and no row moves when others are
    added.

    Args:
        data: names the source.
        columns: what each row must have. optional: what is kept too, where a row has it.

    Raises:
        ValueError: a file that is not there or of another kind, a line that cannot be read, a
            missing column, a split without rows; by file and line.
    """
    columns, optional, source = tuple(columns), tuple(optional), data.source
    if '{split}' in source:
        tables = {name: source.replace('{split}', name) for name in SPLITS}
        there = [name for name in SPLITS if name == 'train' or is_there(tables[name])]
        found = {name: list(_read(tables[name], data, columns, optional)) for name in there}
        if 'validation' not in found:
            places = [(_place(record), record) for record in found['train']]
            found['validation'] = [record for place, record in places if place < 0.1]
            found['train'] = [record for place, record in places if place >= 0.1]
    else:
        found = {name: [] for name in SPLITS}
        for record in _read(source, data, columns, optional):
            place = _place(record)
            found[next(name for name, end in _SHARES if place < end)].append(record)
    if empty := [name for name, rows in found.items() if not rows]:
        raise ValueError(f'{source} has no rows for {", ".join(empty)}')
    return found


def first_record(data: DataSettings) -> Record:
    """The first row of the table that is trained on, with all its columns.

    Raises:
        ValueError: as `read_splits`; no row at all.
    """
    source = data.source.replace('{split}', 'train')
    found = next(iter(_read(source, data, ())), None)
    if found is None:
        raise ValueError(f'{source} has no rows')
    return found


def all_records(data: DataSettings, columns: Iterable[str]) -> Iterator[Record]:
    """Every row of all splits, with these columns.

    Raises:
        ValueError: as `read_splits`.
    """
    tables = list(dict.fromkeys(data.source.replace('{split}', name) for name in SPLITS))
    for table in [name for name in tables if name == tables[0] or is_there(name)]:
        yield from _read(table, data, tuple(columns))


def is_there(source: str) -> bool:
    """Whether a table exists; of a data set of the hub, whether it has the split."""
    if not source.startswith('hf:'):
        return Path(source).is_file()
    name, config, split = _hub_name(source)
    datasets = library('datasets', 'datasets', source)
    try:
        return split in datasets.get_dataset_split_names(name, config)
    except (OSError, ValueError) as error:  # what the library's own errors are
        raise ValueError(f'{source}: {error}') from None


def _place(record: Record) -> float:
    """Where a row stands between 0 and 1, by a hash of what it holds."""
    return int.from_bytes(_digest(record)[:8], 'big') / 2**64


def _digest(record: Record) -> bytes:
    text = json.dumps(record, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).digest()


def _read(
    source: str, data: DataSettings, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterable[Record]:
    if source.startswith('hf:'):
        rows: Iterable[tuple[int, Any]] = _hub(source)
    else:
        path = Path(source)
        if path.suffix not in _READERS:
            raise ValueError(
                f'{path} is none of {", ".join(_READERS)}; a data set of the hub is written '
                "'hf:org/name#{split}'"
            )
        if not path.is_file():
            raise ValueError(f'{path} does not exist')
        rows = _decoded(path, data, _READERS[path.suffix](path, data))
    for number, record in rows:
        if not isinstance(record, Mapping):
            raise ValueError(f'{source}, row {number}: {str(record)[:60]!r} is no object')
        if missing := [name for name in columns if record.get(name) is None]:
            raise ValueError(
                f'{source}, row {number} has no {", ".join(missing)}; its columns are '
                f'{", ".join(map(str, record))}; write for example --data.columns.'
                f'text={next(iter(record), "sentence")}'
            )
        kept = (*columns, *optional) if columns else [name for name in record if name]
        yield {name: record[name] for name in kept if name in record}


def _decoded(path: Path, data: DataSettings, rows: Iterable[Any]) -> Iterable[Any]:
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{path} is not {data.encoding}: {error.reason} at byte {error.start}; '
            'write for example --data.encoding latin-1'
        ) from None
    except LookupError:
        raise ValueError(f'{data.encoding!r} is no encoding; write for example utf-8') from None


def _json_lines(path: Path, data: DataSettings) -> Iterable[tuple[int, Any]]:
    with path.open(encoding=data.encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f'{path}, line {number}: not JSON: {error}') from None


def _csv(path: Path, data: DataSettings) -> Iterable[tuple[int, Any]]:
    yield from _separated(path, data, delimiter=',', strict=True)


def _tsv(path: Path, data: DataSettings) -> Iterable[tuple[int, Any]]:
    # Quotation marks in files with tabs are a part of the text.
    yield from _separated(path, data, delimiter='\t', quoting=csv.QUOTE_NONE)


def _separated(path: Path, data: DataSettings, **form: Any) -> Iterable[tuple[int, Any]]:
    # A mark at the start of a file, which spreadsheets write, is no part of the first name.
    encoding = 'utf-8-sig' if data.encoding.lower() in ('utf-8', 'utf8') else data.encoding
    with path.open(encoding=encoding, newline='') as file:
        try:
            yield from enumerate(csv.DictReader(file, data.header or None, **form), start=1)
        except csv.Error as error:
            raise ValueError(f'{path}: not {path.suffix[1:].upper()}: {error}') from None


def _parquet(path: Path, data: DataSettings) -> Iterable[tuple[int, Any]]:
    del data
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f'{path}: not Parquet: {error}') from None


def _hub_name(source: str) -> tuple[str, str | None, str]:
    """The data set, its configuration and its split."""
    name, mark, split = source.removeprefix('hf:').partition('#')
    if not mark or not split:
        raise ValueError(f"{source} names no split; write 'hf:{name}#{{split}}'")
    name, _, config = name.partition(':')
    return name, config or None, split


def _hub(source: str) -> Iterable[tuple[int, Any]]:
    name, config, split = _hub_name(source)
    datasets = library('datasets', 'datasets', source)
    try:
        table = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:  # what the library's own errors are
        raise ValueError(f'{source}: {error}') from None
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            # Its file as it is, bytes and all: a decoded picture has no stable hash.
            table = table.cast_column(column, datasets.Image(decode=False))
    yield from enumerate(table, start=1)


_READERS: Mapping[str, Callable[[Path, DataSettings], Iterable[tuple[int, Any]]]] = {
    '.jsonl': _json_lines,
    '.csv': _csv,
    '.tsv': _tsv,
    '.parquet': _parquet,
}
