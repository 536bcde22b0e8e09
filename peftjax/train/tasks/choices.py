"""Chooses one of a few answers, by how likely an encoder with a decoder finds their words."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.train.data import corpora
from peftjax.train.data.packing import Row
from peftjax.train.data.tables import Record, read_splits
from peftjax.train.losses.choices import length_normalised_loss, unlikelihood_loss
from peftjax.train.settings import Settings
from peftjax.train.task import Batch, Forward, Task, Totals
from peftjax.train.tasks import base


def choices(settings: Settings, model: peftjax.Model) -> Task:
    r"""Columns text, choices and label: the answer of the greatest mean token log-probability.

    The loss of an example is the mean cross-entropy of the right answer's tokens, plus `unlikely`
    times the unlikelihood of the wrong ones, plus `normalised` times the cross-entropy over the
    answers' mean log-probabilities. The column choices holds a list of answers, label the number of
    the right one from 0 on.

    A row: input_ids, segment_ids int32 [T]; choice_ids int32 [C, L], with zeros where choice_mask
    is False; targets int32 []; weights float32 [].

    Options: unlikely (1.0), normalised (1.0); shots, how many examples to train on, drawn by the
    seed (0 takes all); decoder_start_id (0, T5's padding).

    Source: Liu et al., T-Few, 2022 (arXiv:2205.05638), section 3.2.
    """
    options = base.options_of(settings, unlikely=1.0, normalised=1.0, shots=0, decoder_start_id=0)
    data, columns = settings.data, settings.data.columns
    tokenizer = base.needed(model, settings)
    longest = max(data.lengths, default=base.most_tokens(model))
    backend = base.cutting(tokenizer, longest)

    def encode(record: Mapping[str, Any]) -> tuple[Row, list[list[int]]]:
        answers = record[columns['choices']]
        if not isinstance(answers, list | tuple) or len(answers) < 2:
            raise ValueError(
                f'{columns["choices"]} is {str(answers)[:60]!r}; write a list of at least two'
            )
        ids = np.asarray(backend.encode(base.text_of(record, columns['text'])).ids, np.int32)
        row = {'input_ids': ids, 'segment_ids': np.ones_like(ids)}
        return row, [backend.encode(str(answer)).ids for answer in answers]

    splits: base.Splits = {}
    if data.source:
        names = [columns[name] for name in ('text', 'choices', 'label')]
        tables = read_splits(data, names)
        if options['shots']:
            tables['train'] = corpora.draw(tables['train'], options['shots'], settings.seed)
        kept = {name: base.limited(rows, data) for name, rows in tables.items()}
        encoded = {name: [encode(record) for record in rows] for name, rows in kept.items()}
        shape = _shape([answers for rows in encoded.values() for _, answers in rows])
        splits = {
            name: [
                {
                    **row,
                    **_padded(answers, shape),
                    'targets': _number(record, columns['label'], answers),
                    'weights': np.float32(1),
                }
                for record, (row, answers) in zip(kept[name], rows, strict=True)
            ]
            for name, rows in encoded.items()
        }
    return _task(settings, model, splits, options)


def _task(
    settings: Settings, model: peftjax.Model, splits: base.Splits, options: Mapping[str, Any]
) -> Task:
    start = options['decoder_start_id']

    def totals(forward: Forward, batch: Batch) -> Totals:
        log_probs, mask = _log_probs(forward, batch, start), batch['choice_mask']
        targets, weights = batch['targets'], batch['weights']
        likely, right = _means(log_probs, mask), jnp.arange(len(targets))

        def each(loss: Any) -> jax.Array:
            one = jax.vmap(lambda p, m, t: loss(p[None], m[None], t[None]))
            return one(log_probs, mask, targets)

        losses = -likely[right, targets]
        losses += options['unlikely'] * each(unlikelihood_loss)
        losses += options['normalised'] * each(length_normalised_loss)
        hits = jnp.argmax(likely, axis=-1) == targets
        return {
            'loss': (losses * weights).sum(),
            'accuracy': jnp.where(hits, weights, 0.0).sum(),
            'weights': weights.sum(),
        }

    def outputs(forward: Forward, batch: Batch) -> Mapping[str, jax.Array]:
        likely = _means(_log_probs(forward, batch, start), batch['choice_mask'])
        return {'logits': likely, 'targets': batch['targets']}

    data = settings.data
    sizes = [len(row['input_ids']) for row in splits.get('train', ())]
    return Task(
        splits=splits,
        totals=totals,
        outputs=outputs,
        best='-loss',
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        lengths=base.lengths_of(settings, model, sizes),
    )


def _log_probs(forward: Forward, batch: Batch, start: int) -> jax.Array:
    """The log-probability of each token of each answer, float32 [B, C, L].

    The text is read once for every answer.
    """
    answers, mask = batch['choice_ids'], batch['choice_mask']
    count, number, length = answers.shape
    flat, real = answers.reshape(-1, length), mask.reshape(-1, length)
    shifted = jnp.concatenate([jnp.full_like(flat[:, :1], start), flat[:, :-1]], axis=1)

    def repeated(values: jax.Array) -> jax.Array:
        return jnp.repeat(values, number, axis=0)

    found = forward(
        {
            'input_ids': repeated(batch['input_ids']),
            'attention_mask': repeated(batch['segment_ids'] > 0),
            'decoder_input_ids': shifted,
            'decoder_attention_mask': real,
            'targets': flat,
        }
    )
    return -found.losses.reshape(count, number, length)


def _means(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over an answer's tokens, [B, C]; the least float32 for an answer that is missing."""
    lengths = mask.sum(-1)
    means = jnp.where(mask, log_probs, 0.0).sum(-1) / jnp.maximum(lengths, 1).astype(jnp.float32)
    return jnp.where(lengths > 0, means, jnp.finfo(jnp.float32).min)


def _shape(answers: list[list[list[int]]]) -> tuple[int, int]:
    """The greatest number of answers of an example, and of tokens of an answer."""
    return max(map(len, answers)), max(len(ids) for each in answers for ids in each)


def _padded(answers: list[list[int]], shape: tuple[int, int]) -> Row:
    ids, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for place, answer in enumerate(answers):
        ids[place, : len(answer)], mask[place, : len(answer)] = answer, True
    return {'choice_ids': ids, 'choice_mask': mask}


def _number(record: Record, column: str, answers: list[list[int]]) -> np.int32:
    number = record[column]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(answers):
        raise ValueError(
            f"{column} is {number!r}; write the right answer's number, 0 to {len(answers) - 1}"
        )
    return np.int32(number)
