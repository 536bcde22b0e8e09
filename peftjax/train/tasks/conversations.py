"""Reads conversations from records, and writes them as texts with a chat template."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peftjax
from peftjax.train.data.chat_template import write_conversations
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.tasks import base

_NOTHING: Mapping[str, str] = {'role': 'assistant', 'content': ''}


def conversation(
    settings: Settings, record: Mapping[str, Any], *, answered: bool = True
) -> list[Any]:
    """The messages of a record, as roles and contents, the answer last.

    answered: whether the record has an answer; otherwise an empty one stands for it.

    Raises:
        ValueError: a record that holds no conversation.
    """
    columns = settings.data.columns
    if 'messages' not in columns:
        prompt = base.text_of(record, columns['prompt'])
        more = record.get(columns['input']) if 'input' in columns else None
        prompt = f'{prompt}\n\n{more}' if more else prompt
        return [
            {'role': 'user', 'content': prompt},
            {'role': 'assistant', 'content': base.text_of(record, columns['answer'])}
            if answered
            else _NOTHING,
        ]
    given, messages = record.get(columns['messages']), []
    if isinstance(given, list | tuple):
        messages = [_message(each) for each in given]
        if not answered and messages and (messages[-1] or {}).get('role') != 'assistant':
            messages.append(_NOTHING)
    if len(messages) < 2 or not all(each is not None for each in messages):
        raise ValueError(
            f'{columns["messages"]} is {str(given)[:80]}; a conversation is '
            "a list of at least two {'role': ..., 'content': ...}"
        )
    if messages[-1]['role'] != 'assistant':
        raise ValueError(
            f'a conversation ends with the role {messages[-1]["role"]!r}; its last message must be '
            "an answer, of the role 'assistant'"
        )
    return messages


_SHARE_GPT = {'human': 'user', 'gpt': 'assistant', 'user': 'user', 'assistant': 'assistant'}


def _message(message: Any) -> Any:
    """A message as a role and a content; None for anything else."""
    if not isinstance(message, dict):
        return None
    if {'from', 'value'} <= set(message) and isinstance(message['from'], str):
        role = _SHARE_GPT.get(message['from'], message['from'])
        return {'role': role, 'content': message['value']}
    return message if {'role', 'content'} <= set(message) else None


def chats(
    settings: Settings, tokenizer: peftjax.Tokenizer, conversations: Sequence[Sequence[Any]]
) -> list[tuple[str, str]]:
    """Each conversation as (text before its last message, text of that message)."""
    written = write_conversations(
        template_of(settings, tokenizer), conversations, tokenizer.special, settings.data.today
    )
    pairs = []
    for prompt, whole in written:
        if not whole.startswith(prompt):
            raise ValueError(
                f'the chat template writes {prompt[-80:]!r} before an answer, but not in the whole '
                'conversation, so the loss would not know where the answer begins'
            )
        pairs.append((prompt, whole[len(prompt) :]))
    return pairs


def chat_prompt(settings: Settings, tokenizer: peftjax.Tokenizer, record: Mapping[str, Any]) -> str:
    """The text before a record's answer; the record may have no answer."""
    asked = conversation(settings, record, answered=False)
    template, today = template_of(settings, tokenizer), settings.data.today
    [(prompt, _)] = write_conversations(template, [asked], tokenizer.special, today)
    return prompt


def template_of(settings: Settings, tokenizer: peftjax.Tokenizer) -> str:
    """The chat template of the settings, a text or a file, or the checkpoint's own.

    Raises:
        SettingsError: there is none.
    """
    given = settings.data.chat_template
    if given is not None:
        file = Path(given) if '{' not in given else None
        if file is not None and not file.is_file():
            raise SettingsError(f'data.chat_template {given!r} is neither a template nor a file')
        return given if file is None else file.read_text(encoding='utf-8')
    if tokenizer.chat_template is None:
        raise SettingsError(
            f'{settings.model.source} has no chat template, which {settings.task} needs; take an '
            'instruction-tuned checkpoint, or write --data.chat_template FILE'
        )
    return tokenizer.chat_template
