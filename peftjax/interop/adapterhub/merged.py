"""AdapterHub's LoRA and (IA)³ on one matrix of query, key and value, as GPT-2 has it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.interop.adapterhub.file import Arrays, File
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError

_LETTERS = 'qkv'


def letters_of(file: File) -> str:
    """Which of query, key and value the file adapts."""
    given = file.config.get('attn_matrices')
    if not isinstance(given, list) or not given or set(given) - set(_LETTERS):
        raise CheckpointError(f'{file.where}: attn_matrices is {str(given)[:60]}, not q, k or v')
    return ''.join(letter for letter in _LETTERS if letter in given)


def is_merged(hub: Hub, module: str) -> bool:
    """Whether one of their modules makes query, key and value at once."""
    merged = hub.places.merged
    return merged is not None and module.endswith(merged.partition('{layer}')[2])


def joined(file: File, module: str, arrays: Mapping[str, np.ndarray], rank: int) -> Arrays:
    """The factors of each of the letters, `[n r, in]` and `[n out, r]`, as those of one matrix."""
    letters, (a, b) = letters_of(file), (arrays['a'], arrays['b'])
    count, outputs = len(letters), len(b) // len(letters)
    inputs = a.shape[-1]
    if (a.shape, b.shape) != ((count * rank, inputs), (count * outputs, rank)):
        raise CheckpointError(
            f'{file.where}: {module} has factors {a.shape} and {b.shape} for {letters} of rank '
            f'{rank}'
        )
    wide = np.zeros((count, rank, 3, outputs), b.dtype)
    for number, letter in enumerate(letters):
        part = b[number * outputs : (number + 1) * outputs]
        wide[number, :, _LETTERS.index(letter)] = part.T
    return {'a': a.T, 'b': wide.reshape(count * rank, 3 * outputs)}


def parted(a: np.ndarray, b: np.ndarray, rank: int | None) -> tuple[Arrays, str, int]:
    """Factors of one matrix as those of its letters, which letters, and the rank of each.

    Args:
        a, b: `[in, n r]`, `[n r, 3 out]`.
        rank: the rank of each letter; by default any that fits.

    Raises:
        ValueError: the factors do not fit the given rank.
    """
    whole, outputs = a.shape[1], b.shape[1] // 3
    for count in (3, 2, 1):
        size = whole // count
        if whole % count or rank not in (None, size):
            continue
        blocks = b.reshape(count, size, 3, outputs)
        used = [np.flatnonzero(block.any(axis=(0, 2))).tolist() for block in blocks]
        if all(len(each) == 1 for each in used) and sorted({each[0] for each in used}) == [
            each[0] for each in used
        ]:
            parts = [blocks[number, :, each[0]].T for number, each in enumerate(used)]
            letters = ''.join(_LETTERS[each[0]] for each in used)
            return {'a': a.T, 'b': np.concatenate(parts)}, letters, size
    if rank not in (None, whole):
        raise ValueError(
            f'a LoRA of rank {whole} on one matrix of query, key and value, beside others of rank '
            f'{rank}; AdapterHub has one rank for all'
        )
    # Each letter gets its own factors, with the same first factor.
    third = b.reshape(whole, 3, outputs).transpose(1, 2, 0).reshape(3 * outputs, whole)
    return {'a': np.concatenate([a.T] * 3), 'b': third}, _LETTERS, whole


def widened(file: File, module: str, scale: np.ndarray, features: int) -> np.ndarray:
    """Scales of the letters as scales of the matrix, `[features]`, with ones elsewhere."""
    letters, size = letters_of(file), features // 3
    if scale.shape != (len(letters) * size,):
        raise CheckpointError(f'{file.where}: {module} has {scale.shape} scales for {letters}')
    wide = np.ones((3, size), scale.dtype)
    for number, letter in enumerate(letters):
        wide[_LETTERS.index(letter)] = scale[number * size : (number + 1) * size]
    return wide.reshape(-1)


def narrowed(scale: np.ndarray, letters: str) -> np.ndarray:
    """The scales of the letters alone."""
    return np.concatenate([scale.reshape(3, -1)[_LETTERS.index(letter)] for letter in letters])


def scaled_letters(scales: list[np.ndarray]) -> str:
    """Which letters have scales other than one in any layer; key and value if none has."""
    changed = {
        letter
        for each in scales
        for letter, part in zip(_LETTERS, each.reshape(3, -1), strict=True)
        if np.any(part != 1)
    }
    return ''.join(letter for letter in _LETTERS if letter in changed) or 'kv'


def one_of(found: Any, what: str) -> Any:
    """The one value that all have.

    Raises:
        ValueError: they have several.
    """
    values = set(found)
    if len(values) != 1:
        raise ValueError(f'AdapterHub has one {what} for all matrices, here are {sorted(values)}')
    return values.pop()
