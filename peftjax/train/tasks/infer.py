"""Infers settings from the data and the model: columns, classes, lengths, and a new head."""

import dataclasses
import re
from typing import Any

import peftjax
from peftjax.train.data.batches import row_sizes
from peftjax.train.data.tables import all_records, first_record
from peftjax.train.readers.registry import classes_of
from peftjax.train.settings import Settings
from peftjax.train.tasks.base import lengths_of
from peftjax.train.tasks.classify import listed
from peftjax.train.tasks.columns import find_classes, find_columns
from peftjax.train.tasks.registry import TASKS, Kind, find_task


def infer(settings: Settings) -> Settings:
    """The settings; values that are not set come from the data and the model.

    It sets the columns of a table by usual names, the classes of its labels, the lengths that
    batches are padded to, and `select` for a new head that no method trains. It reads no weights.
    Settings of your own task are left as they are.

    Raises:
        SettingsError: the columns cannot be found; the labels are not classes.
        ValueError: the table cannot be read.
    """
    kind = TASKS.get(settings.task)
    if kind is None:
        return settings
    if kind.columns and settings.data.source:
        settings = _with_columns(settings, kind)
    wants_lengths = bool(kind.columns) and not settings.data.lengths and settings.task != 'images'
    wants_head = not {'select', 'full'}.intersection(settings.methods)
    if not wants_head and not (wants_lengths and settings.data.source):
        return settings
    arguments: dict[str, Any] = {**settings.model.arguments()}
    arguments['task'] = settings.model.task or kind.head
    model = peftjax.load(**arguments, abstract=True)
    if wants_head and model.fresh:
        targets = '|'.join(map(re.escape, sorted(model.fresh)))
        sections = {**settings.sections, 'select': {'targets': targets}}
        methods = (*settings.methods, 'select')
        settings = dataclasses.replace(settings, methods=methods, sections=sections)
    return _with_lengths(settings, model) if wants_lengths and settings.data.source else settings


def _with_columns(settings: Settings, kind: Kind) -> Settings:
    data, model = settings.data, settings.model
    columns = find_columns(data, first_record(data), kind.columns, kind.optional, kind.named)
    data = dataclasses.replace(data, columns=columns)
    count = {'regression': 1}.get(kind.head or '')
    if kind.classes is not None:
        if not data.labels and data.reader:
            data = dataclasses.replace(data, labels=classes_of(data))
        elif not data.labels and model.num_labels is None:
            labels = find_classes(data, _values(settings, columns[kind.classes]))
            data = dataclasses.replace(data, labels=labels)
        count = len(data.labels)
    if count and model.num_labels is None:
        model = dataclasses.replace(model, num_labels=count)
    return dataclasses.replace(settings, data=data, model=model)


def _values(settings: Settings, column: str) -> list[Any]:
    records = all_records(settings.data, (column,))
    if settings.task == 'token_classification':
        return [tag for record in records for tag in listed(record, column)]
    return [record[column] for record in records]


def _with_lengths(settings: Settings, model: peftjax.Model) -> Settings:
    """The settings with lengths that fit the rows that the task makes."""
    task = find_task(settings.task)(settings, model)
    lengths = task.lengths or lengths_of(settings, model, row_sizes(task.splits['train']).tolist())
    data = dataclasses.replace(settings.data, lengths=tuple(lengths))
    return dataclasses.replace(settings, data=data)
