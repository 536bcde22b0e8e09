"""Tables in files, and data sets of the hub: JSON lines, CSV, TSV, Parquet."""

import codecs
import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from peftjax.interop.errors import readable
from peftjax.interop.files.bounded_json import parse
from peftjax.train.optional import library
from peftjax.train.settings import DataSettings

Record = dict[str, Any]


def is_there(source: str) -> bool:
    """Whether a table exists; for a data set of the hub, whether it has the split."""
    if not source.startswith('hf:'):
        return Path(source).is_file()
    name, config, split = _hub_name(source)
    datasets = library('datasets', 'datasets', source)
    try:
        return split in datasets.get_dataset_split_names(name, config)
    except (OSError, ValueError) as error:  # the bases of the library's own errors
        raise ValueError(f'{source}: {error}') from None


def read_table(
    source: str,
    data: DataSettings,
    columns: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    *,
    empty: bool = True,
) -> Iterable[Record]:
    """The rows of one table.

    Args:
        source: a file, or a split of a data set of the hub, 'hf:org/name#train'.
        data: the header and the encoding of files.
        columns: columns that each row must have; if empty, all columns are kept.
        optional: columns that are kept too, if a row has them.
        empty: whether a text of `columns` may be empty.

    Raises:
        ValueError: a file that does not exist or is of another kind; a line that cannot be read or
            has more or fewer parts than there are columns; a file that is not in the
            encoding of `data`, or an encoding that Python does not know; two columns of one name; a
            missing column, or an empty text in one. The message names the file, and the row if one
            is wrong.
    """
    try:
        yield from _read(source, data, columns, optional, empty=empty)
    except ValueError as error:
        raise ValueError(readable(str(error))) from None


def _read(
    source: str,
    data: DataSettings,
    columns: tuple[str, ...],
    optional: tuple[str, ...],
    *,
    empty: bool,
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
        void = [n for n in columns if isinstance(record[n], str) and not record[n].strip()]
        if void and not empty:
            raise ValueError(
                f'{source}, row {number} has an empty {void[0]}; fill it in, or leave the row out '
                'of the file'
            )
        kept = (*columns, *optional) if columns else [name for name in record if name]
        yield {name: record[name] for name in kept if name in record}


def _decoded(path: Path, data: DataSettings, rows: Iterable[Any]) -> Iterable[Any]:
    try:
        yield from rows
    except UnicodeError as error:
        with path.open('rb') as file:
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        exact = isinstance(error, UnicodeDecodeError)
        found = f'{error.reason} at byte {error.start}' if exact else str(error)
        raise ValueError(
            f'{path} is not {data.encoding}: {found}; '
            f'write for example --data.encoding {"utf-16" if wide else "latin-1"}'
        ) from None
    except LookupError:
        raise ValueError(f'{data.encoding!r} is no encoding; write for example utf-8') from None


def _json_lines(path: Path, data: DataSettings) -> Iterable[tuple[int, Any]]:
    with path.open(encoding=_encoding(data)) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, parse(line)
            except ValueError as error:
                raise ValueError(f'{path}, line {number}: {error}') from None


def _encoding(data: DataSettings) -> str:
    # The mark that spreadsheets write at the start of a file is no part of the first name.
    return 'utf-8-sig' if data.encoding.lower() in ('utf-8', 'utf8') else data.encoding


def _csv(path: Path, data: DataSettings) -> Iterable[tuple[int, Any]]:
    yield from _separated(path, data, delimiter=',', strict=True)


def _tsv(path: Path, data: DataSettings) -> Iterable[tuple[int, Any]]:
    # Quotation marks in files with tabs are a part of the text.
    yield from _separated(path, data, delimiter='\t', quoting=csv.QUOTE_NONE)


def _separated(path: Path, data: DataSettings, **form: Any) -> Iterable[tuple[int, Any]]:
    with path.open(encoding=_encoding(data), newline='') as file:
        lines = csv.reader(file, **form)
        names = list(data.header)
        row = 0
        try:
            for parts in lines:
                if not parts:  # An empty line.
                    continue
                if not names:
                    names = parts
                    _check_names(path, names)
                    continue
                row += 1
                if len(parts) != len(names):
                    raise ValueError(_other_length(path, row, lines.line_num, parts, names))
                yield row, dict(zip(names, parts, strict=True))
        except csv.Error as error:
            raise ValueError(
                f'{path}, line {lines.line_num}: not {path.suffix[1:].upper()}: {error}'
            ) from None


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Raises `ValueError` for two columns of one name, since one would be dropped."""
    names = list(names)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(
            f'{path} has two columns called {twice[0]!r}, among {", ".join(names)}: rename one'
        )


def _other_length(path: Path, row: int, line: int, parts: list[str], names: list[str]) -> str:
    """Why a row is refused that has more or fewer parts than there are columns."""
    known = ', '.join(names)
    if len(parts) > len(names):
        return (
            f'{path}, row {row} has more parts than there are columns ({known}): '
            f'{str(parts[len(names) :])[:60]}, up to line {line}; put texts that hold the '
            'separator in quotation marks, in a .csv file'
        )
    return (
        f'{path}, row {row} has no {", ".join(names[len(parts) :])}, up to line {line}: it has '
        f'{len(parts)} parts and there are {len(names)} columns ({known})'
    )


def _parquet(path: Path, data: DataSettings) -> Iterable[tuple[int, Any]]:
    del data
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names)
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
    except (OSError, ValueError) as error:  # the bases of the library's own errors
        raise ValueError(f'{source}: {error}') from None
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            # The bytes of its file: a decoded picture has no stable hash.
            table = table.cast_column(column, datasets.Image(decode=False))
    yield from enumerate(table, start=1)


_READERS: Mapping[str, Callable[[Path, DataSettings], Iterable[tuple[int, Any]]]] = {
    '.jsonl': _json_lines,
    '.csv': _csv,
    '.tsv': _tsv,
    '.parquet': _parquet,
}
