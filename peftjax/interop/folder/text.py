"""The text of a description, within bounds."""

import json
import math
import pathlib
from typing import Any

from peftjax.interop.errors import CheckpointError

_MOST_BYTES = 2**26
_MOST_DEPTH = 64


def text_of(fields: dict[str, Any]) -> str:
    """The text of a file.

    Raises:
        ValueError: it is longer, or nested more deeply, than `read_text` takes.
    """
    text = json.dumps(fields, indent=1, allow_nan=False) + '\n'
    if len(text.encode()) > _MOST_BYTES or _depth(fields) > _MOST_DEPTH:
        raise ValueError(
            f'the arguments of the transform take {len(text)} characters of JSON; write long lists '
            'of numbers as arrays'
        )
    return text


def read_text(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file, which is not trusted.

    Raises:
        CheckpointError: it is absent, not JSON, no object, or beyond the bounds of size, nesting
            and numbers; a key that stands twice.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f'{path} is larger than {_MOST_BYTES} bytes')
        text = path.read_text(encoding='utf-8')
        fields = json.loads(
            text, parse_constant=_no_constant, parse_float=_float, object_pairs_hook=_object
        )
    except FileNotFoundError:
        raise CheckpointError(f'{path} does not exist; is it a folder of peftjax.save?') from None
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f'{path} is nested too deeply') from None
    except (ValueError, OSError) as error:  # No JSON, no UTF-8, a number of thousands of digits.
        raise CheckpointError(f'{path} is not JSON: {error}') from error
    if not isinstance(fields, dict):
        raise CheckpointError(f'{path} holds a JSON {type(fields).__name__}, expected an object')
    if _depth(fields) > _MOST_DEPTH:
        raise CheckpointError(f'{path} is nested too deeply')
    return fields


def _no_constant(name: str) -> Any:
    raise CheckpointError(f'{name} is no JSON')


def _float(text: str) -> float:
    if not math.isfinite(float(text)):
        raise CheckpointError(f'{text[:60]} is too large a number')
    return float(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CheckpointError(f'a key stands twice among {sorted(found)[:8]}')
    return found


def _depth(value: Any) -> int:
    """How deeply lists and objects are nested; by levels, so that no depth is too great."""
    depth, level = 0, [value]
    while level:
        inner = [each for each in level if isinstance(each, dict | list)]
        level = [v for each in inner for v in (each.values() if isinstance(each, dict) else each)]
        depth += bool(inner)
    return depth
