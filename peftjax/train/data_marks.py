"""Digests of the data that a run reads, which show whether they changed between two starts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peftjax.train.data.images import Images
from peftjax.train.data.packing import Row
from peftjax.train.data.tables import SPLITS
from peftjax.train.run import Run

Marks = Mapping[str, str]
"""A digest for each file or other source, by its name in words."""


def data_marks(run: Run) -> dict[str, str]:
    """Digests of the files, the tokenizer, the chat template and the prepared rows of a run.

    The digest of the rows changes whenever something changes from which they are made, also in a
    data set of the hub. The other digests tell which source it was.

    Example:
        >>> import numpy as np
        >>> rows = [{'x': np.float32(1)}, {'x': np.float32(2)}]
        >>> first, other = (rows_mark(each) for each in (rows, rows[::-1]))
        >>> first == rows_mark(list(rows)), first == other
        (True, False)
    """
    about = run.description.get('data', {})
    marks = {f'the file {path}': _file(path) for path in _files(about)}
    words = run.model.tokenizer
    if words is not None:
        ends = (words.bos_id, words.eos_id, words.pad_id, words.end_ids)
        marks['the tokenizer'] = _text(words.backend.to_str(), repr(ends))
    template = about.get('chat_template') or getattr(words, 'chat_template', None)
    if template is not None:
        is_file = len(template) < 4096 and '\n' not in template and Path(template).is_file()
        marks['the chat template'] = _file(Path(template)) if is_file else _text(template)
    for name, rows in run.task.splits.items():
        marks[f'the rows of {name}'] = rows_mark(rows)
    return marks


def changes(before: Marks, now: Marks) -> list[str]:
    """The differences between two starts, one text for each changed source.

    Example:
        >>> changes({'the tokenizer': 'a', 'the rows of test': 'b'}, {'the tokenizer': 'c'})
        ['the tokenizer has changed', 'the rows of test are gone']
    """
    found = []
    for name in dict.fromkeys((*now, *before)):
        are = 'are' if name.startswith('the rows') else 'is'
        if name not in now:
            found.append(f'{name} {are} gone')
        elif name not in before:
            found.append(f'{name} {are} new')
        elif before[name] != now[name]:
            found.append(f'{name} {"have changed" if are == "are" else "has changed"}')
    return found


def rows_mark(rows: Sequence[Row]) -> str:
    """A digest of prepared rows; for images, of their paths or bytes and of their classes."""
    digest = hashlib.sha256(str(len(rows)).encode())
    if isinstance(rows, Images):
        for source in rows.sources():
            digest.update(repr(source).encode())
        return digest.hexdigest()
    for row in rows:
        for path, leaf in jax.tree.leaves_with_path(row):
            value = np.asarray(leaf)
            digest.update(f'{jax.tree_util.keystr(path)} {value.dtype} {value.shape}'.encode())
            plain = value.dtype != object
            digest.update(value.tobytes() if plain else repr(leaf).encode())
    return digest.hexdigest()


def _files(about: Mapping[str, Any]) -> list[Path]:
    """The local files that settings name."""
    source = str(about.get('source', ''))
    named = [source.replace('{split}', split) for split in SPLITS] if source else []
    named += [str(each) for each in dict(about.get('splits', {})).values()]
    there = [Path(each) for each in dict.fromkeys(named) if not each.startswith('hf:')]
    return [path for path in there if path.is_file()]


def _file(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _text(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
