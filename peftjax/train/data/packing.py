"""Rows of tokens: one example each, or several packed into one row of fixed length.

A row is a dict of one-dimensional arrays of equal length, and of values for the whole row: scalars,
or an image. A position is padding if its segment_ids is 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]


def chat_row(prompt: Sequence[int], answer: Sequence[int], max_length: int) -> Row:
    """One prompt and its answer as a row for next-token prediction, loss on the answer only.

    With tokens s = prompt + answer, position t holds input s[t], target s[t+1], and weight 1 where
    s[t+1] belongs to the answer, else 0. The row has len(s) - 1 positions, cut at `max_length`.

    Returns:
        input_ids, targets, segment_ids, position_ids int32 [T]; weights float32 [T].

    Raises:
        ValueError: no token of the answer would be predicted, so the row would train nothing.

    Example:
        >>> chat_row([5, 6], [7, 8], max_length=4)['weights']
        array([0., 1., 1.], dtype=float32)
    """
    tokens = np.asarray([*prompt, *answer], np.int32)
    length = min(len(tokens) - 1, max_length)
    positions = np.arange(length, dtype=np.int32)
    if not trains(prompt, answer, max_length):
        raise ValueError(
            f'a prompt of {len(prompt)} tokens and an answer of {len(answer)}, cut at '
            f'{max_length}, leave no token of the answer to predict; leave the example out, or '
            'write a greater length'
        )
    return {
        'input_ids': tokens[:-1][:length],
        'targets': tokens[1:][:length],
        'weights': (positions >= len(prompt) - 1).astype(np.float32),
        'segment_ids': np.ones(length, np.int32),
        'position_ids': positions,
    }


def trains(prompt: Sequence[int], answer: Sequence[int], max_length: int) -> bool:
    """Whether a `chat_row` of these would have a token of the answer to predict.

    Example:
        >>> trains([5, 6, 7], [8], max_length=2), trains([5, 6, 7], [8], max_length=3)
        (False, True)
    """
    return min(len(prompt) + len(answer) - 1, max_length) > max(len(prompt) - 1, 0)


def seq2seq_row(text: Sequence[int], answer: Sequence[int], start: int) -> Row:
    """A text and the answer that a decoder is to write; the shorter one is padded to the longer.

    Returns:
        input_ids, segment_ids, decoder_input_ids (`start`, then the answer), targets (the answer),
        decoder_segment_ids int32 [T]; weights float32 [T], 1 on the answer.
    """
    length = max(len(text), len(answer))
    sides = {
        'input_ids': np.asarray(text, np.int32),
        'segment_ids': np.ones(len(text), np.int32),
        'decoder_input_ids': np.asarray([start, *answer[:-1]][: len(answer)], np.int32),
        'decoder_segment_ids': np.ones(len(answer), np.int32),
        'targets': np.asarray(answer, np.int32),
        'weights': np.ones(len(answer), np.float32),
    }
    return pad(sides, length)


def pack(rows: Sequence[Row], length: int) -> list[Row]:
    """Packs rows into rows of `length` positions: first fit, with the longest rows first.

    Segments of a packed row are numbered from 1, positions start anew in each, and the rest is
    padding (0 everywhere), so attention within equal segment_ids gives every example the result it
    has alone.

    Raises:
        ValueError: a row is longer than `length`.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]['input_ids']))
    bins: list[list[Row]] = []
    room: list[int] = []
    for i in order:
        size = len(rows[i]['input_ids'])
        if size > length:
            raise ValueError(f'row {i} has {size} tokens, more than the packed length {length}')
        chosen = next((b for b, left in enumerate(room) if left >= size), None)
        if chosen is None:
            chosen = len(bins)
            bins.append([])
            room.append(length)
        bins[chosen].append(rows[i])
        room[chosen] -= size
    return [_join(members, length) for members in bins]


def pad(row: Row, length: int) -> Row:
    """The row with zeros appended up to `length`; values without positions stay as they are."""
    return {
        name: np.pad(value, (0, length - len(value))) if np.ndim(value) == 1 else value
        for name, value in row.items()
    }


def _join(members: Sequence[Row], length: int) -> Row:
    numbered = [
        {**row, 'segment_ids': row['segment_ids'] * number}
        for number, row in enumerate(members, start=1)
    ]
    joined = {name: np.concatenate([row[name] for row in numbered]) for name in numbered[0]}
    return pad(joined, length)
