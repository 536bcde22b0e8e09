"""Writes conversations with a checkpoint's chat template, in a process that may be stopped.

A template is a program that comes with a checkpoint, so it is not trusted. Jinja's sandbox keeps it
from files and from Python, but lets it loop or double a text for ever. Here it runs in a separate
process, which the system ends after two seconds for one conversation and limits to one gigabyte.
Templates have the names that transformers gives them: `tojson` without escapes of HTML,
`strftime_now`, `raise_exception`, `break` and `continue`, and blocks of `generation`.

Source: `_compile_jinja_template` in transformers/utils/chat_template_utils.py.
"""

import datetime
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

SECONDS = 2.0
_MEMORY = 2**30
# Limits for all conversations together: a number of seconds, plus some for each conversation; and
# a number of characters, plus some for each.
_ALL_SECONDS, _EACH_SECONDS = 60.0, 0.02
_ALL_TEXT, _EACH_TEXT = 2**26, 8000
# Characters that a template may write for a conversation, plus some for each of its characters: for
# system prompts, and the tokens around each turn.
_LONGEST, _RATIO = 100_000, 4
_MOST_MESSAGES = 2**24  # characters of a conversation
_MOST_SAID = 500  # characters of an error, whose text the template chooses


def write_conversations(
    template: str,
    conversations: Sequence[Sequence[Any]],
    special: Mapping[str, str],
    today: str = '',
) -> list[tuple[str, str]]:
    """Each conversation as (text before its last message, whole text).

    Args:
        template: the Jinja source.
        conversations: lists of messages, as JSON holds them.
        special: texts of special tokens, by their names in templates; an empty one is a token that
            the checkpoint does not have.
        today: the date that `strftime_now` writes, such as '2026-11-28'; empty is now.

    Raises:
        ValueError: `today` is not a date; a conversation that JSON cannot hold, or of more than 16
            million characters; a template that cannot be read, refuses a conversation, takes more
            than two seconds or a gigabyte for one, takes more than a minute plus a fiftieth of a
            second for each, or writes far more than the conversations hold.

    Example:
        >>> message = {'role': 'assistant', 'content': 'four'}
        >>> template = '<s>{% for message in messages %}{{ message.content }}{% endfor %}'
        >>> write_conversations(template, [[message]], {})
        [('<s>', '<s>four')]
    """
    try:
        if today:
            datetime.datetime.fromisoformat(today)
        special = {name: token for name, token in special.items() if token}
        lines = [json.dumps([template, special, today]), *map(json.dumps, map(list, conversations))]
    except TypeError as error:
        raise ValueError(f'a conversation holds a value that JSON cannot: {error}') from None
    if len(longest := max(lines[1:], key=len, default='')) > _MOST_MESSAGES:
        raise ValueError(
            f'a conversation has {len(longest):,} characters, more than {_MOST_MESSAGES:,}: '
            f'{longest[:80]}'
        )
    written = _written(lines, conversations)
    return [(prompt, whole) for prompt, whole in written]


def _written(lines: Sequence[str], conversations: Sequence[Any]) -> list[Any]:
    """The texts that the process writes for the lines."""
    seconds = _ALL_SECONDS + _EACH_SECONDS * len(conversations)
    try:
        worker = subprocess.run(
            [sys.executable, '-I', __file__],
            input='\n'.join(lines),
            capture_output=True,
            encoding='utf-8',
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f'the chat template takes more than {seconds:.0f} s for {len(conversations)} '
            'conversations'
        ) from None
    written = [json.loads(line) for line in worker.stdout.splitlines()]
    if written and isinstance(written[-1], str):
        raise ValueError(f'the chat template of the checkpoint {written[-1]}')
    if worker.returncode == -signal.SIGALRM:
        where = ascii(conversations[len(written)])[:80] if conversations else ''
        raise ValueError(f'the chat template takes more than {SECONDS:g} s to write {where}')
    if worker.returncode:
        raise ValueError(
            f'the chat template ended its process with code {worker.returncode}: '
            f'{ascii(worker.stderr.strip()[-200:])}'
        )
    return written


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` around the assistant's text, which is written as it is."""

    tags = {'generation'}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        call = self.call_method('_written')
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment(today: str) -> jinja2.sandbox.SandboxedEnvironment:
    """The environment in which a template runs."""
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )

    def strftime_now(form: str) -> str:
        now = datetime.datetime.fromisoformat(today) if today else datetime.datetime.now()
        return now.strftime(form)

    sandbox.filters['tojson'] = _to_json
    sandbox.globals['raise_exception'] = _refuse
    sandbox.globals['strftime_now'] = strftime_now
    return sandbox


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Replaces Jinja's own filter, which escapes characters of HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _work() -> None:
    """Reads a line [template, special, today], then conversations; writes a line for each."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    source, special, today = json.loads(sys.stdin.readline())
    given = {'tools': None, 'documents': None, **special}
    # The default action of the alarm ends the process, whatever it is doing.
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        template = _environment(today).from_string(source)
    except Exception as error:  # noqa: BLE001 (a template is a program, with any of Python's errors)
        _end(f'cannot be read: {_said(error)}')
    total, room = 0, _ALL_TEXT
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        messages = json.loads(line)
        try:
            texts = [
                template.render(messages=messages[:-1], add_generation_prompt=True, **given),
                template.render(messages=messages, add_generation_prompt=False, **given),
            ]
        except Exception as error:  # noqa: BLE001 (the same)
            _end(f'cannot write {line.strip()[:200]}: {_said(error)}')
        length = max(map(len, texts))
        total, room = total + length, room + _EACH_TEXT + _RATIO * len(line)
        if length > _LONGEST + _RATIO * len(line):
            _end(f'writes {length} characters for {line.strip()[:200]}')
        if total > room:
            _end(f'writes {total} characters for conversations that are much shorter')
        print(json.dumps(texts))


def _end(reason: str) -> NoReturn:
    print(json.dumps(reason))
    sys.exit()


def _said(error: Exception) -> str:
    """The text of an error, cut and in ASCII, since the template may have chosen it."""
    text = str(error)
    shown = ascii(text[:_MOST_SAID])[1:-1] + ('...' if len(text) > _MOST_SAID else '')
    return shown or type(error).__name__


def _refuse(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message)[: 2 * _MOST_SAID])


if __name__ == '__main__':
    _work()
