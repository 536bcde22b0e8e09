"""`peftjax predict`: the predictions of a trained model for each row of a table."""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from peftjax.cli.evaluate_command import open_folder
from peftjax.cli.parser import Parser, UsageError
from peftjax.cli.source import RUN, add_which
from peftjax.train.data.table_files import read_table
from peftjax.train.files import new_file
from peftjax.train.inference import predict
from peftjax.train.settings import DataSettings

_ROLES = ('text', 'prompt')


def add_arguments(parser: Parser) -> None:
    parser.add_argument('base', metavar='run', help=RUN)
    parser.add_argument('file', nargs='?', help='a .jsonl, .csv or .parquet file')
    parser.add_argument(
        '--text', action='append', metavar='TEXT', help='instead of a file; may be given again'
    )
    parser.add_argument(
        '--out', metavar='FILE', help='.jsonl or .csv; without it, JSON lines are printed'
    )
    add_which(parser)
    parser.add_settings('model', 'data')


def run(arguments: argparse.Namespace) -> None:
    """Writes a row of predictions for each row of the table, in its order.

    Raises:
        ValueError: the run or the table does not exist; a row lacks a column; the task makes no
            predictions.
    """
    if (arguments.file is None) == (arguments.text is None):
        raise UsageError('give a file, or --text TEXT')
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None and out.suffix not in ('.jsonl', '.csv'):
        raise UsageError(f'--out {out} is neither .jsonl nor .csv')
    folder = open_folder(arguments)
    if arguments.file is None:
        column = _text_column(folder.settings.data)
        records = [{column: text} for text in arguments.text]
    else:
        records = list(read_table(arguments.file, folder.settings.data))
    model = folder.load_model()
    task = folder.load_task(model, data=False)
    restored = folder.load_adapter(model, arguments.which)
    rows = with_answers(records, predict(model, *restored, task, records))
    if out is None:
        _write_json(rows, sys.stdout)
        return
    with new_file(out) as new, new.open('x', encoding='utf-8', newline='') as file:
        (_write_csv if out.suffix == '.csv' else _write_json)(rows, file)
    print(out)


def with_answers(
    records: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each record with its answer; a name that both have becomes `predicted_<name>` in the answer.

    Example:
        >>> with_answers([{'text': 'fine', 'label': 'bad'}], [{'label': 'good'}])
        [{'text': 'fine', 'label': 'bad', 'predicted_label': 'good'}]
    """
    return [
        {
            **record,
            **{f'predicted_{n}' if n in record else n: value for n, value in answer.items()},
        }
        for record, answer in zip(records, answers, strict=True)
    ]


def _text_column(data: DataSettings) -> str:
    """The column that holds the text."""
    found = [data.columns[role] for role in _ROLES if role in data.columns]
    return found[0] if found else 'text'


def _write_json(rows: Iterable[Mapping[str, Any]], file: TextIO) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False, default=str) + '\n')


def _write_csv(rows: Sequence[Mapping[str, Any]], file: TextIO) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file, names)
    writer.writeheader()
    # Lists and mappings are written as JSON.
    writer.writerows(
        {n: json.dumps(v) if isinstance(v, list | dict) else v for n, v in row.items()}
        for row in rows
    )
