"""A user's own table as rows of a task: texts, pairs, instructions, text to text, images.

`data.columns` names the table's columns, `data.labels` the classes in order, empty where the table
holds integers. Everything else is as for the other data sets.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

import peftjax
from peftjax.train.data.chat_template import write_conversations
from peftjax.train.data.packing import Row, chat_row, pack, seq2seq_row
from peftjax.train.data.tables import Record, read_splits
from peftjax.train.settings import DataSettings, Settings

Splits = dict[str, Sequence[Row]]


def labelled_texts(settings: Settings, model: peftjax.Model) -> Splits:
    """Columns text and label; with data.columns['second'], a pair of texts and its label.

    A row: input_ids, segment_ids, and for pairs token_type_ids, int32 [T]; targets int32 [];
    weights float32 []. Texts too long for the greatest length are cut by the tokenizer, which
    keeps its special tokens and cuts the longer text of a pair first.
    """
    data = settings.data
    backend = _cutting(needed(model.tokenizer, settings), max(data.lengths))
    columns, label = data.columns, _labels(settings)
    second = columns.get('second')

    def row(record: Record) -> Row:
        pair = _text(record, second) if second else None
        encoded = backend.encode(_text(record, columns['text']), pair)
        ids = np.asarray(encoded.ids, np.int32)
        types = {'token_type_ids': np.asarray(encoded.type_ids, np.int32)} if second else {}
        return {
            'input_ids': ids,
            **types,
            'segment_ids': np.ones_like(ids),
            'targets': label(record[columns['label']]),
            'weights': np.float32(1.0),
        }

    return _each(data, (columns['text'], second, columns['label']), row)


def instructions(settings: Settings, model: peftjax.Model) -> Splits:
    """Columns prompt and answer, or messages: a conversation that ends with an answer.

    The checkpoint's own chat template writes the conversation; the loss covers what stands behind
    the generation prompt, the end of the turn included. Rows are `packing.chat_row`s, with
    data.packing several to a row of the greatest length. Longer ones are cut there.

    Raises:
        ValueError: a checkpoint without a chat template, or one that writes the prompt otherwise
            once it is answered.
    """
    data, tokenizer = settings.data, needed(model.tokenizer, settings)
    if tokenizer.chat_template is None:
        raise ValueError(
            'the checkpoint has no chat template, which instructions need; take an instruction-'
            'tuned one'
        )
    columns, longest = data.columns, max(data.lengths)
    special = {
        name: '' if number is None else tokenizer.decode([number], skip_special_tokens=False)
        for name, number in (('bos_token', tokenizer.bos_id), ('eos_token', tokenizer.eos_id))
    }
    names = (
        (columns['messages'],) if 'messages' in columns else (columns['prompt'], columns['answer'])
    )

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def row(prompt: str, whole: str) -> Row:
        if not whole.startswith(prompt):
            raise ValueError(
                f'the chat template writes {prompt[-80:]!r} in front of an answer and not once it '
                'is answered, so that the loss would not know where the answer begins'
            )
        return chat_row(ids(prompt), ids(whole[len(prompt) :]), longest)

    splits: Splits = {}
    for name, records in read_splits(data.source, names).items():
        conversations = [_messages(record, columns) for record in _limit(records, data)]
        texts = write_conversations(tokenizer.chat_template, conversations, special)
        rows = [row(*each) for each in texts]
        splits[name] = pack(rows, longest) if data.packing else rows
    return splits


def text_to_text(settings: Settings, model: peftjax.Model) -> Splits:
    """Columns text and answer, for an encoder and a decoder: rows are `packing.seq2seq_row`s.

    data.decoder_start_id begins what the decoder writes; 0, its padding, for T5.
    """
    data = settings.data
    backend = _cutting(needed(model.tokenizer, settings), max(data.lengths))
    columns, start = data.columns, data.options.get('decoder_start_id', 0)

    def row(record: Record) -> Row:
        text, answer = (
            backend.encode(_text(record, name)).ids for name in (columns['text'], columns['answer'])
        )
        return seq2seq_row(text, answer, start)

    return _each(data, (columns['text'], columns['answer']), row)


class Images(Sequence[Row]):
    """Rows that are read from their files when they are asked for.

    A row: pixel_values float32 [3, size, size]; targets int32 []; weights float32 [].
    """

    def __init__(self, rows: Sequence[tuple[Any, np.int32]], read: Callable[[Any], np.ndarray]):
        self._rows, self._read = rows, read

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Images(self._rows[index], self._read)
        image, target = self._rows[index]
        return {
            'pixel_values': self._read(image),
            'targets': target,
            'weights': np.float32(1.0),
        }

    def sizes(self) -> np.ndarray:
        """int [rows]: all alike, and none has tokens to pad."""
        return np.zeros(len(self), np.int64)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


def labelled_images(settings: Settings, model: peftjax.Model) -> Splits:
    """Columns image and label. An image is a path below the table's folder, or a file's bytes.

    data.image: size, of the square that the image is resized to (bicubic); mean and std, of each
    channel, after pixels were brought to 0 … 1.
    """
    del model
    data = settings.data
    label, columns = _labels(settings), data.columns
    folder = Path() if data.source.startswith('hf:') else Path(data.source).parent
    size = data.options['size']
    mean, std = (
        np.asarray(values, np.float32)[:, None, None]
        for values in (data.options['mean'], data.options['std'])
    )

    def read(image: Any) -> np.ndarray:
        name, content = image, image
        if isinstance(image, dict):
            name, content = image.get('path'), image.get('bytes')
            content = name if content is None else content
        if isinstance(content, bytes):
            content = io.BytesIO(content)
        elif isinstance(content, str):
            path = (folder / content).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise ValueError(f'image {content!r} lies outside {folder}')
            content = path
        else:
            raise ValueError(f'image {str(image)[:80]} is neither a path nor the bytes of a file')
        try:
            with Image.open(content) as file:
                square = file.convert('RGB').resize((size, size), Image.Resampling.BICUBIC)
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f'image {str(name)[:80]!r} cannot be read: {error}') from None
        pixels = np.asarray(square, np.float32).transpose(2, 0, 1) / 255.0
        return (pixels - mean) / std

    table = read_splits(data.source, (columns['image'], columns['label']))
    return {
        name: Images(
            [(r[columns['image']], label(r[columns['label']])) for r in _limit(rows, data)], read
        )
        for name, rows in table.items()
    }


def _each(
    data: DataSettings, columns: Sequence[str | None], row: Callable[[Record], Row]
) -> Splits:
    table = read_splits(data.source, [name for name in columns if name])
    return {
        name: [row(record) for record in _limit(records, data)] for name, records in table.items()
    }


def _limit(rows: list[Any], data: DataSettings) -> list[Any]:
    return rows[: data.limit] if data.limit else rows


def _labels(settings: Settings) -> Callable[[Any], np.int32]:
    names, count = settings.data.labels, settings.model.num_labels or 0
    if names and len(names) != count:
        raise ValueError(f'data.labels names {len(names)} classes, model.num_labels is {count}')

    def number(value: Any) -> np.int32:
        if isinstance(value, str) and value in names:
            return np.int32(names.index(value))
        if isinstance(value, str) and not names and value.isdecimal():
            value = int(value)  # a CSV file holds text alone
        if type(value) is int and 0 <= value < count:
            return np.int32(value)
        raise ValueError(
            f'label {value!r} is none of {names or f"0 to {count - 1}"}; set model.num_labels, and '
            'data.labels to the class names in order where the table holds names'
        )

    return number


def _messages(record: Record, columns: Mapping[str, str]) -> list[Any]:
    if 'messages' not in columns:
        return [
            {'role': 'user', 'content': _text(record, columns['prompt'])},
            {'role': 'assistant', 'content': _text(record, columns['answer'])},
        ]
    messages = record[columns['messages']]
    fitting = isinstance(messages, list) and len(messages) > 1
    if not fitting or not all(
        isinstance(m, dict) and {'role', 'content'} <= set(m) for m in messages
    ):
        raise ValueError(
            f'{columns["messages"]} is {str(messages)[:80]}; a conversation is a list of at least '
            "two {'role': ..., 'content': ...}"
        )
    if messages[-1]['role'] != 'assistant':
        raise ValueError(f'a conversation ends with {messages[-1]["role"]!r} and not an answer')
    return messages


def _text(record: Record, column: str) -> str:
    text = record[column]
    if not isinstance(text, str):
        raise ValueError(f'column {column!r} holds {str(text)[:60]!r}, which is no text')
    return text


def needed(tokenizer: peftjax.Tokenizer | None, settings: Settings) -> peftjax.Tokenizer:
    if tokenizer is None:
        raise ValueError(
            f'task {settings.task!r} reads text, and the checkpoint has no tokenizer.json'
        )
    return tokenizer


def _cutting(tokenizer: peftjax.Tokenizer, longest: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.enable_truncation(longest)
    return backend
