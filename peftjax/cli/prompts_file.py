"""The prompts of `peftjax generate --prompts`: a file with one JSON object a line."""

import difflib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from peftjax.train.data.json_lines import read_objects

MOST_NEW_TOKENS = 10**6
_FIELDS = ('prompt', 'adapter', 'max_new_tokens')


class Prompt(NamedTuple):
    """A line of the file.

    Attributes:
        where: file and line, for messages.
        text: of the prompt.
        adapter: name of the adapter; None for the base.
        slot: number of the adapter, from 1; 0 for the base.
        max_new_tokens: of the answer.
    """

    where: str
    text: str
    adapter: str | None
    slot: int
    max_new_tokens: int


def named(adapters: str) -> dict[str, str]:
    """The folders in a comma-separated list by name: the text before `=`, or else the last part.

    Raises:
        ValueError: a name or a folder is empty, or a name is there twice.

    Example:
        >>> named('runs/film,spam=runs/2/adapter')
        {'film': 'runs/film', 'spam': 'runs/2/adapter'}
    """
    found: dict[str, str] = {}
    for each in adapters.split(','):
        name, equals, path = each.partition('=')
        if not equals:
            name, path = pathlib.PurePath(each).name, each
        if not name or not path:
            raise ValueError(
                f'--adapters {adapters}: {each!r} lacks a name or a folder; write a,b or '
                'first=a,second=b'
            )
        if name in found:
            raise ValueError(
                f'--adapters {adapters}: two are called {name!r}; write for example {name}_2={path}'
            )
        found[name] = path
    return found


def read(path: str, names: Sequence[str], max_new_tokens: int) -> list[Prompt]:
    """The prompts of a file, in its order.

    Args:
        names: of the adapters, in the order of their numbers, from 1.
        max_new_tokens: for lines without this field.

    Raises:
        ValueError: what `read_objects` raises; a field is unknown, missing or of another type; an
            adapter is unknown; the file has no prompt. The message names file and line.
    """
    found = [
        _prompt(f'{path}, line {number}', fields, names, max_new_tokens)
        for number, fields in read_objects(pathlib.Path(path))
    ]
    if not found:
        raise ValueError(f'{path} holds no prompt; write a line such as {{"prompt": "The sea is"}}')
    return found


def _prompt(
    where: str, fields: Mapping[str, Any], names: Sequence[str], max_new_tokens: int
) -> Prompt:
    for name in fields:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0)[0]
            raise ValueError(f'{where}: unknown field {name[:60]!r}; near name: {near}')
    text, most = fields.get('prompt'), fields.get('max_new_tokens', max_new_tokens)
    if not isinstance(text, str):
        raise ValueError(f'{where}: prompt is {_short(text)}; write a text')
    if type(most) is not int or not 1 <= most <= MOST_NEW_TOKENS:
        raise ValueError(
            f'{where}: max_new_tokens is {_short(most)}; write a whole number from 1 to '
            f'{MOST_NEW_TOKENS}'
        )
    slot = _slot(where, fields.get('adapter'), names)
    return Prompt(where, text, names[slot - 1] if slot else None, slot, most)


def _slot(where: str, adapter: Any, names: Sequence[str]) -> int:
    if adapter is None:
        return 0
    if isinstance(adapter, str) and adapter in names:
        return names.index(adapter) + 1
    if type(adapter) is int and 0 <= adapter <= len(names):
        return adapter
    listed = ', '.join(f'{number} {name}' for number, name in enumerate(names, 1))
    raise ValueError(
        f'{where}: no adapter {_short(adapter)}; there are {listed or "none: give --adapters"}'
    )


def _short(value: Any) -> str:
    return repr(value)[:60]
