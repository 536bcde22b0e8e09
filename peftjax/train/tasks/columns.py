"""Finds the columns of a table by their role, and its classes, if the settings do not name them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftjax.train.data.tables import Record
from peftjax.train.settings import DataSettings, SettingsError

_MOST_CLASSES = 1000
_USUAL: Mapping[str, Sequence[str]] = {
    'text': (
        *(
            'text',
            'sentence',
            'content',
            'message',
            'review',
            'question',
            'query',
            'tweet',
            'title',
        ),
        *('document', 'body', 'utterance', 'sms', 'comment', 'input', 'source', 'v2'),
        *('sentence1', 'text1', 'question1', 'premise'),
    ),
    'second': ('sentence2', 'text2', 'question2', 'hypothesis', 'passage', 'context', 'second'),
    'label': (
        *(
            'label',
            'labels',
            'category',
            'class',
            'target',
            'sentiment',
            'intent',
            'topic',
            'stars',
        ),
        *(
            'label-coarse',
            'label_coarse',
            'coarse_label',
            'v1',
            'score',
            'rating',
            'similarity_score',
        ),
    ),
    'prompt': ('prompt', 'instruction', 'question', 'query', 'input'),
    'input': ('input', 'context'),
    'answer': ('answer', 'output', 'response', 'completion', 'target', 'summary'),
    'messages': ('messages', 'conversations', 'conversation'),
    'words': ('tokens', 'words'),
    'tags': ('ner_tags', 'tags', 'labels', 'pos_tags'),
    'chosen': ('chosen', 'preferred', 'chosen_response'),
    'rejected': ('rejected', 'dispreferred', 'rejected_response'),
    'completion': ('completion', 'answer', 'response', 'output'),
    'anchor': ('anchor', 'query', 'question', 'sentence1'),
    'positive': ('positive', 'pos', 'passage', 'document', 'answer', 'sentence2'),
    'negative': ('negative', 'neg', 'hard_negative'),
    'choices': ('choices', 'options', 'endings', 'answer_choices'),
    'image': ('image', 'path', 'file', 'filename', 'img'),
}


def find_columns(
    data: DataSettings,
    record: Record,
    roles: Sequence[str],
    optional: Sequence[str] = (),
    named: Sequence[str] = (),
) -> dict[str, str]:
    """The columns of a table by their role: those of the settings, or others by usual names.

    Args:
        data: names some of the columns.
        record: a row of the table.
        roles: roles that need a column.
        optional: roles that are taken if a column has a usual name for them.
        named: roles that are taken only if the settings name their column.

    Raises:
        SettingsError: a role that the task does not have; a named column that the table does not
            have; a role without a column. The message lists the columns of the table.

    Example:
        >>> find_columns(DataSettings(), {'Message': 'Hi', 'Category': 'ham'}, ('text', 'label'))
        {'text': 'Message', 'label': 'Category'}
    """
    names = [str(name) for name in record]
    known = (*roles, *optional, *named)
    for role, name in data.columns.items():
        if role not in known:
            raise SettingsError(f'data.columns.{role}: this task reads {", ".join(known)}')
        if name not in names:
            raise SettingsError(
                f'data.columns.{role} is {name!r}, and the columns of {data.source} are '
                f'{", ".join(names)}'
            )
    found = dict(data.columns)
    by_lower = {name.lower(): name for name in reversed(names)}
    for role in (*roles, *optional):
        taken = set(found.values())
        usual = [by_lower[each] for each in _USUAL.get(role, ()) if each in by_lower]
        free = [name for name in usual if name not in taken]
        if role not in found and free:
            found[role] = free[0]
    missing = [role for role in roles if role not in found]
    left = [name for name in names if name not in found.values()]
    if len(missing) == 1 and len(left) == 1:
        found[missing[0]] = left.pop()
        missing = []
    if missing:
        shown = ', '.join(f'{name} ({str(record[name])[:30]!r})' for name in names)
        raise SettingsError(
            f'which column of {data.source} is the {missing[0]}? Its columns are {shown}; write '
            f'for example --data.columns.{missing[0]} {names[0]!r}; if the first line is data, '
            f'--data.header {",".join(roles)}'
        )
    return {role: found[role] for role in known if role in found}


def find_classes(data: DataSettings, labels: Iterable[Any]) -> tuple[str, ...]:
    """The names of the classes of a column, in order: numbers by size, texts by the alphabet.

    Raises:
        SettingsError: a label that is empty, a number with a fraction, or neither text nor number;
            equal numbers as text and as number; more than 1000 classes, or only one.

    Example:
        >>> find_classes(DataSettings(), ['spam', 'ham', 'spam']), find_classes(
        ...     DataSettings(), [1, 0, 10])
        (('ham', 'spam'), ('0', '1', '10'))
    """
    where, found = data.source, set()
    for label in labels:
        if not isinstance(label, str | int | float):
            raise SettingsError(f'a label of {where} is {str(label)[:60]!r}, which is no name')
        if isinstance(label, str) and not label.strip():
            raise SettingsError(f'a row of {where} has an empty label; leave such rows out')
        found.add(label)
    if all(map(_number, found)) and not all(map(_whole, found)):
        raise SettingsError(
            f'the labels of {where} are numbers such as {next(iter(found))!r}; for these write '
            '--task regression'
        )
    if fractions := [each for each in found if isinstance(each, float)]:
        raise SettingsError(f'labels of {where} are names, and one is the number {fractions[0]}')
    if len(found) > _MOST_CLASSES:
        raise SettingsError(
            f'{where} has {len(found)} different labels: is that the right column? '
            'Write --data.columns.label'
        )
    if len(found) < 2:
        raise SettingsError(f'{where} has only the label {", ".join(map(str, found))}')
    names = {str(each) for each in found}
    if len(names) < len(found):
        raise SettingsError(f'labels of {where} have the same number as a number and as a text')
    return tuple(sorted(names, key=int if all(map(_whole, names)) else None))


def _whole(value: Any) -> bool:
    text = str(value)
    return text.removeprefix('-').isdecimal() and not isinstance(value, bool)


def _number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return not isinstance(value, bool)
