"""Classes, numbers and tags of texts and of pairs of texts."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.train.data.packing import Row
from peftjax.train.data.tables import Record
from peftjax.train.metrics.labels import in_bio_form
from peftjax.train.metrics.registry import metrics_of
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.task import Batch, Forward, Task, Totals
from peftjax.train.tasks import base

IGNORED = -100
"""The target of a position that does not count."""


def classification(settings: Settings, model: peftjax.Model) -> Task:
    """The class of a text, or of a pair of texts if there is a column for the second one.

    A row: input_ids, segment_ids, and for pairs of an encoder token_type_ids, int32 [T]; targets
    int32 []; weights float32 []. Texts too long for the greatest length are cut by the tokenizer,
    which keeps its special tokens and cuts the longer text of a pair first.

    Options: label_smoothing, and metrics (accuracy is always there): f1, f1_macro, matthews.
    The loss of an evaluation is smoothed like that of a training step.
    """
    options = base.options_of(settings, label_smoothing=0.0, metrics=())
    number = class_number(settings)
    backend = _backend(settings, model)
    encode = _encoder(settings, model, backend)
    columns = settings.data.columns

    def row(record: Record) -> Row:
        targets = number(record[columns['label']])
        return {**encode(record), 'targets': targets, 'weights': np.float32(1)}

    def totals(forward: Forward, batch: Batch) -> Totals:
        logits = forward(base.encoder_inputs(batch))
        return base.weighted_totals(logits, batch, options['label_smoothing'])

    task = _of_texts(settings, model, row, totals, class_outputs, options['metrics'])
    return dataclasses.replace(
        task, row=encode, answer=class_answer(settings), notes=backend.notes()
    )


def regression(settings: Settings, model: peftjax.Model) -> Task:
    """A number for a text or a pair of texts, trained with the squared error.

    A row: as for `classification`, but targets float32 [].

    Options: metrics: pearson, spearman (both by default).
    """
    options = base.options_of(settings, metrics=('pearson', 'spearman'))
    backend = _backend(settings, model)
    encode, columns = _encoder(settings, model, backend), settings.data.columns

    def row(record: Record) -> Row:
        return {
            **encode(record),
            'targets': _real(record[columns['label']]),
            'weights': np.float32(1),
        }

    def values(forward: Forward, batch: Batch) -> jax.Array:
        return forward(base.encoder_inputs(batch))[..., 0].astype(jnp.float32)

    def totals(forward: Forward, batch: Batch) -> Totals:
        errors = (values(forward, batch) - batch['targets']) ** 2
        weights = batch['weights']
        return {'loss': (errors * weights).sum(), 'weights': weights.sum()}

    def outputs(forward: Forward, batch: Batch) -> Mapping[str, jax.Array]:
        return {'values': values(forward, batch), **_targets(batch)}

    def answer(found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        return {'value': float(found['values'])}

    task = _of_texts(settings, model, row, totals, outputs, options['metrics'])
    return dataclasses.replace(task, row=encode, answer=answer, notes=backend.notes())


def token_classification(settings: Settings, model: peftjax.Model) -> Task:
    """A tag for each word, read at the word's first token; its further tokens do not count.

    The columns words and tags hold lists of equal length, or texts with spaces between words and
    between tags. A row: input_ids, segment_ids int32 [T]; targets int32 [T], -100 for tokens that
    do not count; weights float32 []. Words beyond the greatest length do not count.

    Options: label_smoothing; metrics: entity_f1 (by default, if the tags are in BIO form).
    """
    number, names = class_number(settings), settings.data.labels
    usual = ('entity_f1',) if in_bio_form(names) else ()
    options = base.options_of(settings, label_smoothing=0.0, metrics=usual)
    columns, backend = settings.data.columns, _backend(settings, model)

    def encode(record: Mapping[str, Any]) -> tuple[Row, list[int]]:
        encoded = backend.encode_words(listed(record, columns['words']))
        ids = np.asarray(encoded.ids, np.int32)
        places = [-1 if word is None else word for word in encoded.word_ids]
        firsts = [
            p if p != before else -1 for before, p in zip([-1, *places], places, strict=False)
        ]
        return {'input_ids': ids, 'segment_ids': np.ones_like(ids)}, firsts

    def row(record: Record) -> Row:
        made, firsts = encode(record)
        words, tags = (listed(record, columns[name]) for name in ('words', 'tags'))
        if len(tags) != len(words):
            raise ValueError(f'{len(words)} words have {len(tags)} tags: {str(record)[:200]}')
        targets = [IGNORED if place < 0 else number(tags[place]) for place in firsts]
        return {**made, 'targets': np.asarray(targets, np.int32), 'weights': np.float32(1)}

    def plain(record: Mapping[str, Any]) -> Row:
        made, firsts = encode(record)
        return {**made, 'targets': np.where(np.asarray(firsts) < 0, IGNORED, 0).astype(np.int32)}

    def counted(batch: Batch) -> jax.Array:
        """The targets of first tokens of words; -100 elsewhere, also in padding."""
        return jnp.where(batch['segment_ids'] > 0, batch['targets'], IGNORED)

    def totals(forward: Forward, batch: Batch) -> Totals:
        targets = counted(batch)
        weights = jnp.broadcast_to(batch['weights'][:, None], targets.shape)
        logits = forward(base.encoder_inputs(batch))
        counting = {'targets': targets, 'weights': weights}
        return base.weighted_totals(logits, counting, options['label_smoothing'])

    def outputs(forward: Forward, batch: Batch) -> Mapping[str, jax.Array]:
        logits = forward(base.encoder_inputs(batch)).astype(jnp.float32)
        return {'tags': jnp.argmax(logits, -1), 'targets': counted(batch)}

    def answer(found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        kept = found['tags'][found['targets'] >= 0]
        return {'tags': [names[tag] if names else int(tag) for tag in kept]}

    splits = base.read_rows(settings, (columns['words'], columns['tags']), row)
    return Task(
        splits=splits,
        totals=totals,
        outputs=outputs,
        metrics=metrics_of(options['metrics'], names),
        best='-loss',
        batch_size=settings.data.batch_size,
        eval_batch_size=settings.data.eval_batch_size,
        lengths=base.lengths_of(settings, model, base.sizes_of(splits)),
        row=plain,
        answer=answer,
        classes=names,
        notes=backend.notes(),
    )


def listed(record: Mapping[str, Any], column: str) -> list[Any]:
    """A column that holds a list, or a text of parts with spaces between them.

    Raises:
        ValueError: the column is missing or holds something else.

    Example:
        >>> listed({'words': 'Ada writes'}, 'words')
        ['Ada', 'writes']
    """
    found = record.get(column)
    if isinstance(found, str):
        return found.split()
    if not isinstance(found, list | tuple) or not all(isinstance(w, str | int) for w in found):
        raise ValueError(f'column {column!r} holds {str(found)[:60]!r}, which is no list')
    return list(found)


def class_number(settings: Settings) -> Callable[[Any], np.int32]:
    """A function from a label, the name or number of a class, to its number."""
    names = settings.data.labels
    count = len(names) or settings.model.num_labels or 0
    if names and settings.model.num_labels not in (None, count):
        raise SettingsError(
            f'data.labels names {count} classes, model.num_labels is {settings.model.num_labels}'
        )
    numbers = {name: place for place, name in enumerate(names)}

    def number(value: Any) -> np.int32:
        if str(value) in numbers and not isinstance(value, float):
            return np.int32(numbers[str(value)])
        if not names and isinstance(value, str) and value.isdecimal():
            value = int(value)  # a CSV file holds only text
        if not names and type(value) is int and 0 <= value < count:
            return np.int32(value)
        raise ValueError(
            f'label {value!r} is none of {names or f"0 to {count - 1}"}; set data.labels to the '
            'class names in order, or model.num_labels if the table holds numbers from 0 on'
        )

    return number


def class_answer(settings: Settings) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]:
    """A function from the logits of an example to its class's name and probability."""
    names = settings.data.labels

    def answer(found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        logits = np.asarray(found['logits'], np.float64)
        shares = np.exp(logits - logits.max())
        best = int(np.argmax(logits))
        return {
            'label': names[best] if names else best,
            'score': float(shares[best] / shares.sum()),
        }

    return answer


def class_outputs(forward: Forward, batch: Batch) -> Mapping[str, jax.Array]:
    """The logits of each example of texts, and its class if it is known."""
    return {'logits': forward(base.encoder_inputs(batch)).astype(jnp.float32), **_targets(batch)}


def _targets(batch: Batch) -> dict[str, Any]:
    return {'targets': batch['targets']} if 'targets' in batch else {}


def _backend(settings: Settings, model: peftjax.Model) -> base.Cutting:
    longest = max(settings.data.lengths, default=base.most_tokens(model))
    return base.cutting(base.needed(model, settings), longest)


def _encoder(
    settings: Settings, model: peftjax.Model, backend: base.Cutting
) -> Callable[[Mapping[str, Any]], Row]:
    """A function from a record to the tokens of its text or pair of texts."""
    columns = settings.data.columns
    second = columns.get('second')
    # A decoder tells the texts of a pair apart by the tokens between them.
    typed = second and 'token_type_ids' in model.takes

    def encode(record: Mapping[str, Any]) -> Row:
        pair = base.text_of(record, second) if second else None
        encoded = backend.encode(base.text_of(record, columns['text']), pair)
        ids = np.asarray(encoded.ids, np.int32)
        types = {'token_type_ids': np.asarray(encoded.type_ids, np.int32)} if typed else {}
        return {'input_ids': ids, **types, 'segment_ids': np.ones_like(ids)}

    return encode


def _of_texts(
    settings: Settings,
    model: peftjax.Model,
    row: Callable[[Record], Row],
    totals: Callable[[Forward, Batch], Totals],
    outputs: Callable[[Forward, Batch], Mapping[str, jax.Array]],
    metrics: Sequence[str],
) -> Task:
    data, columns = settings.data, settings.data.columns
    names = [columns['text'], columns['label']] + [columns[n] for n in ('second',) if n in columns]
    splits = base.read_rows(settings, names, row)
    return Task(
        splits=splits,
        totals=totals,
        outputs=outputs,
        metrics=metrics_of(metrics, data.labels),
        best='-loss',
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        lengths=base.lengths_of(settings, model, base.sizes_of(splits)),
        classes=data.labels,
    )


def _real(value: Any) -> np.float32:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f'label {value!r} is no finite number')
    return np.float32(number)
