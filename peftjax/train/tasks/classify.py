"""Classes, numbers and tags of texts and of pairs of texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.train.data.packing import Row
from peftjax.train.data.tables import Record
from peftjax.train.metrics.registry import metrics_of
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.task import Batch, Forward, Task, Totals
from peftjax.train.tasks import base

IGNORED = -100
"""The target of a position that counts nowhere."""


def classification(settings: Settings, model: peftjax.Model) -> Task:
    """The class of a text, or of a pair of texts where there is a column for the second one.

    A row: input_ids, segment_ids, and for pairs token_type_ids, int32 [T]; targets int32 [];
    weights float32 []. Texts too long for the greatest length are cut by the tokenizer, which
    keeps its special tokens and cuts the longer text of a pair first.

    Options: label_smoothing, and metrics (accuracy is always there): f1, f1_macro, matthews.
    """
    options = base.options_of(settings, label_smoothing=0.0, metrics=())
    number = class_number(settings)
    encode = _encoder(settings, model)
    columns = settings.data.columns

    def row(record: Record) -> Row:
        targets = number(record[columns['label']])
        return {**encode(record), 'targets': targets, 'weights': np.float32(1)}

    def totals(forward: Forward, batch: Batch) -> Totals:
        logits = forward(base.encoder_inputs(batch))
        return base.weighted_totals(logits, batch, options['label_smoothing'])

    return _of_texts(
        settings,
        model,
        row,
        encode,
        totals,
        class_outputs,
        class_answer(settings),
        options['metrics'],
    )


def regression(settings: Settings, model: peftjax.Model) -> Task:
    """A number for a text or a pair of texts, by the squared error.

    A row: as of `classification`, targets float32 [].

    Options: metrics: pearson, spearman (both unless given).
    """
    options = base.options_of(settings, metrics=('pearson', 'spearman'))
    encode, columns = _encoder(settings, model), settings.data.columns

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

    return _of_texts(settings, model, row, encode, totals, outputs, answer, options['metrics'])


def token_classification(settings: Settings, model: peftjax.Model) -> Task:
    """A tag for each word, read at the word's first token; further tokens of it count nowhere.

    The columns words and tags hold lists of equal length. A row: input_ids, segment_ids int32 [T];
    targets int32 [T], -100 where nothing counts; weights float32 [].

    Options: metrics: entity_f1 of tags in BIO form (unless given).
    """
    options = base.options_of(settings, metrics=('entity_f1',))
    number, names = class_number(settings), settings.data.labels
    tokenizer, columns = base.needed(model, settings), settings.data.columns
    longest = max(settings.data.lengths, default=base.most_tokens(model))
    backend = base.cutting(tokenizer, longest)

    def encode(record: Mapping[str, Any]) -> tuple[Row, list[int]]:
        words = record[columns['words']]
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
            raise ValueError(
                f'{columns["words"]} holds {str(words)[:60]!r}, which is no list of words'
            )
        encoded = backend.encode(list(words), is_pretokenized=True)
        ids = np.asarray(encoded.ids, np.int32)
        places = [-1 if word is None else word for word in encoded.word_ids]
        firsts = [
            p if p != before else -1 for before, p in zip([-1, *places], places, strict=False)
        ]
        return {'input_ids': ids, 'segment_ids': np.ones_like(ids)}, firsts

    def row(record: Record) -> Row:
        made, firsts = encode(record)
        tags = record[columns['tags']]
        if len(tags) != len(record[columns['words']]):
            raise ValueError(
                f'{len(record[columns["words"]])} words have {len(tags)} tags: {record}'
            )
        targets = [IGNORED if place < 0 else number(tags[place]) for place in firsts]
        return {**made, 'targets': np.asarray(targets, np.int32), 'weights': np.float32(1)}

    def plain(record: Mapping[str, Any]) -> Row:
        made, firsts = encode(record)
        return {**made, 'targets': np.where(np.asarray(firsts) < 0, IGNORED, 0).astype(np.int32)}

    def counted(batch: Batch) -> jax.Array:
        """The targets of first tokens of words; -100 elsewhere, in padding too."""
        return jnp.where(batch['segment_ids'] > 0, batch['targets'], IGNORED)

    def totals(forward: Forward, batch: Batch) -> Totals:
        targets = counted(batch)
        weights = jnp.broadcast_to(batch['weights'][:, None], targets.shape)
        logits = forward(base.encoder_inputs(batch))
        return base.weighted_totals(logits, {'targets': targets, 'weights': weights})

    def outputs(forward: Forward, batch: Batch) -> Mapping[str, jax.Array]:
        logits = forward(base.encoder_inputs(batch)).astype(jnp.float32)
        return {'tags': jnp.argmax(logits, -1), 'targets': counted(batch)}

    def answer(found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        kept = found['tags'][found['targets'] >= 0]
        return {'tags': [names[tag] for tag in kept]}

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
    )


def class_number(settings: Settings) -> Callable[[Any], np.int32]:
    """From a label, a class's name or number, to its number."""
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
            value = int(value)  # a CSV file holds text alone
        if not names and type(value) is int and 0 <= value < count:
            return np.int32(value)
        raise ValueError(
            f'label {value!r} is none of {names or f"0 to {count - 1}"}; set data.labels to the '
            'class names in order, or model.num_labels where the table holds numbers from 0 on'
        )

    return number


def class_answer(settings: Settings) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]:
    """From the logits of an example to its class's name and probability."""
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
    """The logits of each example of texts, and its class where it is known."""
    return {'logits': forward(base.encoder_inputs(batch)).astype(jnp.float32), **_targets(batch)}


def _targets(batch: Batch) -> dict[str, Any]:
    return {'targets': batch['targets']} if 'targets' in batch else {}


def _encoder(settings: Settings, model: peftjax.Model) -> Callable[[Mapping[str, Any]], Row]:
    """From a record to the tokens of its text or pair of texts."""
    longest = max(settings.data.lengths, default=base.most_tokens(model))
    backend = base.cutting(base.needed(model, settings), longest)
    columns = settings.data.columns
    second = columns.get('second')

    def encode(record: Mapping[str, Any]) -> Row:
        pair = base.text_of(record, second) if second else None
        encoded = backend.encode(base.text_of(record, columns['text']), pair)
        ids = np.asarray(encoded.ids, np.int32)
        types = {'token_type_ids': np.asarray(encoded.type_ids, np.int32)} if second else {}
        return {'input_ids': ids, **types, 'segment_ids': np.ones_like(ids)}

    return encode


def _of_texts(
    settings: Settings,
    model: peftjax.Model,
    row: Callable[[Record], Row],
    encode: Callable[[Mapping[str, Any]], Row],
    totals: Callable[[Forward, Batch], Totals],
    outputs: Callable[[Forward, Batch], Mapping[str, jax.Array]],
    answer: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]],
    metrics: Sequence[str],
) -> Task:
    data, columns = settings.data, settings.data.columns
    names = [columns['text'], columns['label']] + [columns[n] for n in ('second',) if n in columns]
    splits = base.read_rows(settings, names, row)
    lengths = base.lengths_of(settings, model, base.sizes_of(splits))
    return Task(
        splits=splits,
        totals=totals,
        outputs=outputs,
        metrics=metrics_of(metrics, data.labels),
        best='-loss',
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        lengths=lengths,
        row=encode,
        answer=answer,
        classes=data.labels,
        notes=_cut(splits, max(data.lengths, default=base.most_tokens(model))),
    )


def _cut(splits: base.Splits, longest: int) -> tuple[str, ...]:
    """Says how many texts fill the greatest length, and so were cut or just fit."""
    rows = [row for each in splits.values() for row in each]
    full = sum(len(row['input_ids']) >= longest for row in rows)
    return (f'{full:,} of {len(rows):,} texts were cut at {longest} tokens',) if full else ()


def _real(value: Any) -> np.float32:
    try:
        return np.float32(float(value))
    except (TypeError, ValueError):
        raise ValueError(f'{value!r} is no number') from None
