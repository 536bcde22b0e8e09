"""Good and bad answers as texts, read from records and written by a chat template."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import peftjax
from peftjax.train.data.tables import Record
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.tasks import base, writing


class Judged(NamedTuple):
    """A prompt, its answer, and whether the answer is good."""

    prompt: str
    answer: str
    desirable: bool


def written(
    settings: Settings, model: peftjax.Model, records: Sequence[Record], roles: Sequence[str]
) -> list[list[tuple[str, str]]]:
    """Prompt and answer of every record as texts, for each of the roles."""
    tokenizer = base.needed(model, settings)
    talks = [_conversation(settings, record, role) for role in roles for record in records]
    texts = writing.chats(settings, tokenizer, talks)
    size = len(records)
    return [texts[i * size : (i + 1) * size] for i in range(len(roles))]


def _conversation(settings: Settings, record: Record, role: str) -> list[Any]:
    """The messages of a record that end with the answer of this role."""
    columns = settings.data.columns
    column, said = columns[role], record[columns[role]]
    prompt = record.get(columns['prompt']) if 'prompt' in columns else None
    answer = [{'role': 'assistant', 'content': said}] if isinstance(said, str) else said
    if not isinstance(answer, list | tuple) or not answer:
        raise ValueError(f'column {column!r} holds {str(said)[:60]!r}, no text and no messages')
    first = answer[0] if isinstance(answer[0], Mapping) else {}
    if first.get('role', first.get('from')) in ('assistant', 'gpt'):
        if isinstance(prompt, str):
            prompt = [{'role': 'user', 'content': prompt}]
        if not isinstance(prompt, list | tuple):
            raise ValueError(
                f'column {column!r} holds an answer without a prompt: name the column of the '
                'prompt with --data.columns.prompt, or begin the messages with one of the user'
            )
        answer = [*prompt, *answer]
    data = dataclasses.replace(settings.data, columns={'messages': column})
    return writing.conversation(
        dataclasses.replace(settings, data=data), {column: [*map(dict, answer)]}
    )


def with_others(settings: Settings, found: list[Judged]) -> list[tuple[Judged, ...]]:
    """Each answer, and beside it the same prompt with the answer to the next different prompt."""
    size = len(found)
    other: int | None = None
    others: list[int | None] = [None] * size
    for place in reversed(range(2 * size)):  # twice around: after the last comes the first
        here, behind = place % size, (place + 1) % size
        if found[here].prompt != found[behind].prompt:
            other = behind
        others[here] = other
    if None in others:
        raise SettingsError(
            f'{settings.data.source}: KTO compares with answers to other prompts, and all prompts '
            f'are {found[0].prompt[:60]!r}'
        )
    return [
        (one, one._replace(answer=found[place].answer))
        for one, place in zip(found, others, strict=True)
        if place is not None
    ]


def truth(value: Any) -> bool:
    """A label as true or false.

    Raises:
        ValueError: it is neither.

    Example:
        >>> truth('True'), truth(0)
        (True, False)
    """
    named = {'true': True, 'false': False, '1': True, '0': False}
    if str(value).lower() not in named:
        raise ValueError(f'label {value!r} is neither true nor false')
    return named[str(value).lower()]
