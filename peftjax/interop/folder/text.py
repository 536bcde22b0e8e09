"""The text of a description, within bounds."""

import json
import pathlib
from typing import Any

from peftjax.interop.errors import CheckpointError
from peftjax.interop.files.bounded_json import MOST_BYTES, MOST_DEPTH, depth, read_object


def text_of(fields: dict[str, Any]) -> str:
    """The text of a file.

    Raises:
        ValueError: it is longer, or nested more deeply, than `read_text` takes.
    """
    text = json.dumps(fields, indent=1, allow_nan=False) + '\n'
    if len(text.encode()) > MOST_BYTES or depth(fields) > MOST_DEPTH:
        raise ValueError(
            f'the arguments of the transform take {len(text)} characters of JSON; write long lists '
            'of numbers as arrays'
        )
    return text


def read_text(path: pathlib.Path) -> dict[str, Any]:
    """The object in an untrusted file.

    Raises:
        CheckpointError: as `read_object`.
    """
    if not path.exists():
        raise CheckpointError(f'{path} does not exist; is it a folder of peftjax.save?')
    return read_object(path)
