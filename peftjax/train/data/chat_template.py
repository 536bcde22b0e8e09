"""Writes conversations by a checkpoint's chat template, in a process that may be stopped.

A template is a program that comes with a checkpoint, so that it is not trusted. Jinja's sandbox
keeps it from files and from Python, but lets it loop or double a text for ever. Here it runs in a
process of its own, which the system ends after two seconds for one conversation and keeps to one
gigabyte.
"""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

SECONDS = 2.0
_MEMORY = 2**30
# What a template adds to a conversation: system prompts, the tokens around each turn.
_LONGEST, _RATIO = 100_000, 4


def write_conversations(
    template: str, conversations: Sequence[Sequence[Any]], special: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Each conversation as (what stands before its last message, whole text).

    Args:
        template: the Jinja source.
        conversations: lists of messages, as JSON holds them.
        special: texts of special tokens, by the names that templates know them by.

    Raises:
        ValueError: a message that JSON cannot hold; a template that cannot be read or that refuses
            a conversation, takes more than two seconds or a gigabyte for one, or writes far more
            than the conversation holds.

    Example:
        >>> message = {'role': 'assistant', 'content': 'four'}
        >>> template = '<s>{% for message in messages %}{{ message.content }}{% endfor %}'
        >>> write_conversations(template, [[message]], {})
        [('<s>', '<s>four')]
    """
    try:
        lines = [json.dumps(each) for each in ([template, special], *map(list, conversations))]
    except TypeError as error:
        raise ValueError(f'a conversation holds what JSON cannot: {error}') from None
    worker = subprocess.run(
        [sys.executable, '-I', __file__],
        input='\n'.join(lines),
        capture_output=True,
        encoding='utf-8',
        check=False,
    )
    written = [json.loads(line) for line in worker.stdout.splitlines()]
    if written and isinstance(written[-1], str):
        raise ValueError(f'the chat template of the checkpoint {written[-1]}')
    if worker.returncode == -signal.SIGALRM:
        where = str(conversations[len(written)])[:80]
        raise ValueError(f'the chat template takes more than {SECONDS:g} s to write {where}')
    if worker.returncode:
        raise ValueError(
            f'the chat template ended its process with code {worker.returncode}: '
            f'{worker.stderr.strip()[-200:]}'
        )
    return [(prompt, whole) for prompt, whole in written]


def _work() -> None:
    """A line in, [template, special] and then conversations; a line out, [prompt, whole] or why."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    source, special = json.loads(sys.stdin.readline())
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    sandbox.globals['raise_exception'] = _refuse
    # The alarm's own action ends the process, whatever it is doing.
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        template = sandbox.from_string(source)
    except Exception as error:  # noqa: BLE001 (a template is a program, with any of Python's errors)
        _end(f'cannot be read: {_said(error)}')
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        messages = json.loads(line)
        try:
            texts = [
                template.render(messages=messages[:-1], add_generation_prompt=True, **special),
                template.render(messages=messages, add_generation_prompt=False, **special),
            ]
        except Exception as error:  # noqa: BLE001 (the same)
            _end(f'cannot write {line.strip()[:200]}: {_said(error)}')
        if max(map(len, texts)) > _LONGEST + _RATIO * len(line):
            _end(f'writes {max(map(len, texts))} characters for {line.strip()[:200]}')
        print(json.dumps(texts))


def _end(reason: str) -> NoReturn:
    print(json.dumps(reason))
    sys.exit()


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


if __name__ == '__main__':
    _work()
