"""GLUE and SuperGLUE, with the columns of the hub's tables and the classes as published.

Wang et al., GLUE, 2018 (arXiv:1804.07461); SuperGLUE, 2019 (arXiv:1905.00537). The answers of their
test splits are secret, so papers score the development split, which is 'validation' here. MNLI has
two: matched ('validation') and mismatched ('validation_mismatched').
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from peftjax.train.data.table_files import Record
from peftjax.train.readers.layout import Layout, label


class Sentences(NamedTuple):
    """One of the tasks: its texts, and its classes in the order of their numbers.

    Attributes:
        texts: columns of the one or two texts.
        classes: empty for a number that is predicted.
        tsv: columns of the texts and of the label in the distributed .tsv files: their names, or
            their places if a file has no header.
        broken: whether the distributed files have lines that are cut short; these are left out.
    """

    texts: tuple[str, ...]
    classes: tuple[str, ...]
    tsv: tuple[str | int, ...] = ()
    broken: bool = False


_BOTH = ('sentence1', 'sentence2')
_ENTAILED = ('entailment', 'not_entailment')

GLUE: Mapping[str, Sentences] = {
    'cola': Sentences(('sentence',), ('unacceptable', 'acceptable'), (3, 1)),
    'sst2': Sentences(('sentence',), ('negative', 'positive'), ('sentence', 'label')),
    'mrpc': Sentences(
        _BOTH, ('not_equivalent', 'equivalent'), ('#1 String', '#2 String', 'Quality')
    ),
    'qqp': Sentences(
        ('question1', 'question2'),
        ('not_duplicate', 'duplicate'),
        ('question1', 'question2', 'is_duplicate'),
        broken=True,
    ),
    'stsb': Sentences(_BOTH, (), ('sentence1', 'sentence2', 'score')),
    'mnli': Sentences(
        ('premise', 'hypothesis'),
        ('entailment', 'neutral', 'contradiction'),
        ('sentence1', 'sentence2', 'gold_label'),
    ),
    'qnli': Sentences(('question', 'sentence'), _ENTAILED, ('question', 'sentence', 'label')),
    'rte': Sentences(_BOTH, _ENTAILED, ('sentence1', 'sentence2', 'label')),
    'wnli': Sentences(_BOTH, ('not_entailment', 'entailment'), ('sentence1', 'sentence2', 'label')),
}

SUPERGLUE: Mapping[str, Sentences] = {
    'rte': Sentences(('premise', 'hypothesis'), _ENTAILED),
    'cb': Sentences(('premise', 'hypothesis'), ('entailment', 'contradiction', 'neutral')),
    'boolq': Sentences(('question', 'passage'), ('False', 'True')),
}

_DEV = {'train': 'train', 'validation': 'validation'}
_MNLI = {
    'train': 'train',
    'validation': 'validation_matched',
    'validation_mismatched': 'validation_mismatched',
}
_FILES = {
    'train': 'train.tsv',
    'validation': 'dev.tsv',
    'validation_matched': 'dev_matched.tsv',
    'validation_mismatched': 'dev_mismatched.tsv',
}


def sentences(name: str, task: Sentences) -> Layout:
    """Rows with the columns text, second if there are two texts, and label: a class or a number."""
    texts, classes = task.texts, task.classes

    def record(row: Record) -> Record | None:
        answer = label(classes, row['label'], name) if classes else float(row['label'])
        if answer is None:
            return None
        both = dict(zip(('text', 'second'), (row[each] for each in texts), strict=False))
        return {**both, 'label': answer}

    return Layout(
        columns=(*texts, 'label'),
        record=record,
        splits=_MNLI if name == 'mnli' else _DEV,
        official=_tsv(task),
        classes=classes,
    )


def halves(layout: Layout) -> Layout:
    """The development split in two halves: one chooses the best checkpoint, the other is the test.

    As in ReFT's comparison (Wu et al., 2024, arXiv:2404.03592). A hash of its content decides the
    half of an example.
    """
    splits = {'train': layout.splits['train'], 'test': layout.splits['validation']}
    return dataclasses.replace(layout, splits=splits, halved=True)


def words(name: str, task: Sentences) -> Layout:
    """Rows with the columns text and answer, in the words of T5.

    For example, RTE has 'rte hypothesis: ... premise: ...'.

    Source: Raffel et al., T5, 2019 (arXiv:1910.10683), appendix D.
    """
    plain = sentences(name, task)

    def record(row: Record) -> Record | None:
        answer = label(task.classes, row['label'], name)
        texts = ' '.join(f'{column}: {row[column]}' for column in sorted(task.texts))
        return None if answer is None else {'text': f'{name} {texts}', 'answer': answer}

    return dataclasses.replace(plain, record=record, classes=())


def few_shot_rte() -> Layout:
    """RTE as T-Few reads it: a text, the answers that it may have, and the number of the right one.

    One of the templates of Sanh et al., T0, 2021 (arXiv:2110.08207), 'guaranteed true'. The
    development split is the test.
    """
    task = SUPERGLUE['rte']

    def record(row: Record) -> Record | None:
        answer = label(task.classes, row['label'], 'rte')
        if answer is None:
            return None
        question = f'Given {row["premise"]} Is it guaranteed true that "{row["hypothesis"]}"?'
        return {
            'text': f'{question} Yes or no?',
            'choices': ['Yes', 'No'],
            'label': task.classes.index(answer),
        }

    splits = {'train': 'train', 'test': 'validation'}
    return Layout(columns=(*task.texts, 'label'), record=record, splits=splits)


def _tsv(task: Sentences) -> Callable[[Path, str], Iterator[Record]] | None:
    """Reads the .tsv files of GLUE's own archive, where quotes are plain characters."""
    if not task.tsv:
        return None
    names = (*task.texts, 'label')

    def rows(folder: Path, split: str) -> Iterator[Record]:
        path = folder / _FILES[split]
        if not path.is_file():
            raise ValueError(f'{path} does not exist')
        with path.open(encoding='utf-8-sig', newline='\n') as file:
            header = None if isinstance(task.tsv[0], int) else next(file, '')
            places = _places(task, header, path)
            for number, line in enumerate(file, start=1):
                cells = line.rstrip('\r\n').split('\t')
                if len(cells) > max(places):
                    row = dict(zip(names, (cells[place] for place in places), strict=True))
                    yield {**row, 'label': _number(row['label'], task.classes)}
                elif not task.broken:
                    raise ValueError(f'{path}, row {number}: {line[:60]!r} is cut short')

    return rows


def _places(task: Sentences, header: str | None, path: Path) -> list[int]:
    """The places of the columns."""
    if header is None:
        return [int(each) for each in task.tsv]
    columns = header.rstrip('\r\n').split('\t')
    if missing := [str(each) for each in task.tsv if each not in columns]:
        raise ValueError(f'{path} has no column {missing[0]!r}; its columns are {columns}')
    return [columns.index(str(each)) for each in task.tsv]


def _number(value: str, classes: tuple[str, ...]) -> int | str:
    """A label as on the hub: files hold a class's number, or its name."""
    return classes.index(value) if value in classes else value
