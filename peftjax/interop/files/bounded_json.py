"""Untrusted JSON files, read within bounds of size, nesting and numbers."""

import json
import math
import pathlib
import re
from typing import Any

from peftjax.interop.errors import CheckpointError

MOST_BYTES = 2**24
MOST_DEPTH = 64
_MOST_CONTAINERS = 200_000
_MOST_DIGITS = 400
# Characters beyond the first 65,536 are two such escapes in JSON.
_HALF = re.compile(r'\\u[dD][89a-fA-F]')


def read_object(
    path: pathlib.Path, *, finite: bool = True, most: int = MOST_BYTES
) -> dict[str, Any]:
    """The object in an untrusted file.

    finite: whether NaN and Infinity, which JSON does not have, are refused; scores may have them.
    most: bytes that it may have; the bound on lists and objects grows with it.

    Raises:
        CheckpointError: a file that is absent, not JSON, not an object, or beyond the bounds: 16
            MiB, 200,000 lists and objects, 64 of them inside each other, numbers of 400 digits; a
            key that occurs twice; a text with half of a character, which no encoding has.

    Example:
        >>> file = getfixture('tmp_path') / 'config.json'
        >>> _ = file.write_text('{"layers": 2}')
        >>> read_object(file)
        {'layers': 2}
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise CheckpointError(f'{path} has {size} bytes, more than {most}')
        text = path.read_text(encoding='utf-8')
    except FileNotFoundError:
        raise CheckpointError(f'{path} does not exist') from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f'{path} is not JSON: {error}') from None
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror}') from error
    try:
        value = parse(text, finite=finite, containers=_MOST_CONTAINERS * most // MOST_BYTES)
    except ValueError as error:
        raise CheckpointError(f'{path} {error}') from None
    if not isinstance(value, dict):
        raise CheckpointError(f'{path} holds a JSON {type(value).__name__}, expected an object')
    return value


def parse(text: str, *, finite: bool = True, containers: int = _MOST_CONTAINERS) -> Any:
    """The value of an untrusted text.

    Raises:
        ValueError: see `read_object`; the message is the end of a sentence.
    """
    if text.count('[') + text.count('{') > containers:
        raise ValueError(f'holds more than {containers} lists and objects')

    def constant(name: str) -> float:
        if finite:
            raise _BoundsError(f'holds {name}, which is not a number in JSON')
        return float(name.replace('Infinity', 'inf'))

    try:
        value = json.loads(
            text,
            parse_constant=constant,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError('is nested too deeply') from None
    except _BoundsError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        raise ValueError(f'is not JSON: {error}') from None
    if depth(value) > MOST_DEPTH:
        raise ValueError('is nested too deeply')
    if _HALF.search(text):
        _check_characters(value)
    return value


def _check_characters(value: Any) -> None:
    """Raises `ValueError` for a text with one half of a pair of escapes and not the other."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        near = ascii(error.object[error.start : error.start + 20])
        raise ValueError(
            f'has half of a character at {near}; write the whole character, or remove it'
        ) from None


class _BoundsError(ValueError):
    """JSON beyond the bounds; the message is the end of a sentence."""


def _float(text: str) -> float:
    if not math.isfinite(float(text)):
        raise _BoundsError(f'holds {text[:60]}, which is too large a number')
    return float(text)


def _int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise _BoundsError(f'holds a number of {len(text)} digits')
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _BoundsError(f'has a key that occurs twice, among {sorted(found)[:8]}')
    return found


def depth(value: Any) -> int:
    """How deeply lists and objects are nested, level by level, so that any depth can be counted."""
    found, level = 0, [value]
    while level:
        inner = [each for each in level if isinstance(each, dict | list)]
        level = [v for each in inner for v in (each.values() if isinstance(each, dict) else each)]
        found += bool(inner)
    return found
