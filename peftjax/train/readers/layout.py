"""Published data sets as tables: from the hub, or from local files of the same layout."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from peftjax.train.data.table_files import Record, read_table
from peftjax.train.settings import DataSettings

Records = dict[str, list[Record]]
"""Rows of each split, with the columns that a task reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Maps the columns and splits of a data set to those that a task needs.

    Attributes:
        columns: columns of its tables, as on the hub.
        record: from a row of these columns to one of the task's columns; None leaves the row out.
        splits: our names of splits, and the data set's own.
        official: reads a split, by its own name, from a folder as the authors distribute it; gives
            rows of `columns`.
        elsewhere: layouts of splits that come from other data sets, by our names; `data.splits` of
            the settings has their sources.
        held_out: how many examples of 'train' become 'validation', if the set has none.
        grouped: the column by which rows of the scored splits are joined; the answers of a group
            are its references.
        classes: names of the classes, in the published order.
        halved: whether half of 'test' becomes 'validation'.
    """

    columns: tuple[str, ...]
    record: Callable[[Record], Record | None]
    splits: Mapping[str, str]
    official: Callable[[Path, str], Iterable[Record]] | None = None
    elsewhere: Mapping[str, 'Layout'] = dataclasses.field(default_factory=dict)
    held_out: int = 0
    grouped: str = ''
    classes: tuple[str, ...] = ()
    halved: bool = False


def read(layout: Layout, data: DataSettings) -> Records:
    """The splits of a data set, as rows of the task's columns.

    Args:
        layout: of the data set.
        data: its source is 'hf:org/name:config#{split}', local tables with '{split}' in their name,
            or a folder as the authors distribute it. A set that has no split but 'train' needs no
            '{split}'.

    Raises:
        ValueError: a file that does not exist or cannot be read, a missing column, a split without
            rows, or a label that is none of the data set's.
    """
    places = {ours: (layout, data.source, theirs) for ours, theirs in layout.splits.items()}
    for name, place in data.splits.items():
        if name not in layout.elsewhere:
            raise ValueError(f'{data.source} has its own {name}: leave data.splits.{name} out')
        places[name] = (layout.elsewhere[name], place, name)
    found = {name: list(_rows(*place, data)) for name, place in places.items()}
    if empty := [name for name, rows in found.items() if not rows]:
        raise ValueError(f'{data.source} has no rows for {", ".join(empty)}')
    if layout.held_out:
        # A small table, such as one for a first try, gives only a tenth.
        count = min(layout.held_out, -(-len(found['train']) // 10))
        found |= hold_out(found['train'], count)
    if layout.halved:
        halves = hold_out(found['test'], len(found['test']) // 2)
        found |= {'validation': halves['validation'], 'test': halves['train']}
    if layout.grouped:
        scored = [name for name in found if name != 'train']
        found |= {name: grouped(found[name], layout.grouped) for name in scored}
    return found


def hold_out(rows: list[Record], count: int) -> Records:
    """'train' without some rows, and these rows as 'validation'.

    They are the `count` rows with the least hashes, the same on every machine, and all rows that
    equal one of them.
    """
    digests = [_digest(row) for row in rows]
    last = sorted(digests)[count - 1]
    pairs = list(zip(rows, digests, strict=True))
    return {
        'train': [row for row, digest in pairs if digest > last],
        'validation': [row for row, digest in pairs if digest <= last],
    }


def first(layout: Layout, data: DataSettings) -> Record:
    """The first row of 'train'.

    Raises:
        ValueError: as `read`; 'train' has no rows.
    """
    found = next(_rows(layout, data.source, layout.splits['train'], data), None)
    if found is None:
        raise ValueError(f'{data.source} has no rows for train')
    return found


def grouped(rows: list[Record], column: str) -> list[Record]:
    """One row for each value of the column, with the answers of all its rows as 'references'.

    Example:
        >>> rows = [{'prompt': 'a', 'answer': '1'}, {'prompt': 'a', 'answer': '2'}]
        >>> grouped(rows, 'prompt')
        [{'prompt': 'a', 'answer': '1', 'references': ['1', '2']}]
    """
    found: dict[str, Record] = {}
    for row in rows:
        first = found.setdefault(row[column], {**row, 'references': []})
        first['references'].append(row['answer'])
    return list(found.values())


def label(names: tuple[str, ...], value: object, what: str) -> str | None:
    """The name of a class by its number; None for -1, which stands for a secret answer.

    Raises:
        ValueError: the value is not the number of a class.

    Example:
        >>> label(('negative', 'positive'), 1, 'sst2')
        'positive'
    """
    number = int(value) if isinstance(value, str) and value.lstrip('-').isdecimal() else value
    if number == -1:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(names):
        raise ValueError(f'{what}: label {value!r} is none of 0 to {len(names) - 1}')
    return names[number]


def _rows(layout: Layout, source: str, name: str, data: DataSettings) -> Iterator[Record]:
    folder = Path(source)
    if layout.official is not None and not source.startswith('hf:') and folder.is_dir():
        rows = layout.official(folder, name)
    else:
        rows = read_table(source.replace('{split}', name), data, layout.columns)
    for row in rows:
        made = layout.record(row)
        if made is not None:
            yield made


def _digest(row: Record) -> bytes:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
