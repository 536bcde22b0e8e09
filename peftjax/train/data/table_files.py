"""Tables in files, and data sets of the hub: JSON lines, CSV, TSV, Parquet."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from peftjax.train.optional import library
from peftjax.train.settings import DataSettings

Record = dict[str, Any]


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


def read_table(
    source: str,
    data: DataSettings,
    columns: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> Iterable[Record]:
    """The rows of one table.

    Args:
        source: a file, or a split of a data set of the hub, 'hf:org/name#train'.
        data: the header and the encoding of files.
        columns: what each row must have; all are kept where none is named.
        optional: what is kept too, where a row has it.

    Raises:
        ValueError: a file that is not there or of another kind, a line that cannot be read, or a
            missing column; by file and line.
    """
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
            for row, record in enumerate(
                csv.DictReader(file, data.header or None, **form), start=1
            ):
                if None in record:  # which would cut a text at a comma of its own
                    raise ValueError(
                        f'{path}, row {row} has more parts than there are columns '
                        f'({", ".join(filter(None, record))}): {str(record[None])[:60]}; put texts '
                        'that hold the separator in quotation marks, in a .csv file'
                    )
                yield row, record
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
