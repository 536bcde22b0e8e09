"""Chooses one of a few answers, by how likely a decoder finds their words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.train.data.packing import Row, chat_row
from peftjax.train.data.tables import Record
from peftjax.train.losses.choices import (
    choice_scores,
    length_normalised_loss,
    unlikelihood_loss,
)
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.task import Batch, Forward, Task, Totals
from peftjax.train.tasks import base, sides

_ARRAYS = ('input_ids', 'targets', 'segment_ids')


def choices_decoder(settings: Settings, model: peftjax.Model) -> Task:
    r"""Columns text, choices and label: the right choice becomes the likeliest.

    The column choices holds a list of texts, label the right one of them, as a text or as its
    number from 0 on. A choice follows the text and the option separator. The loss of an example is
    T-Few's,

    .. math:: L = L_{LM} + w_{LN} L_{LN} + w_{UL} L_{UL}

    with the mean cross-entropy of a token of the right choice, `length_normalised_loss` and
    `unlikelihood_loss`. The task `choices` is the same for an encoder with a decoder.

    A row (`sides.join_sides`) has a side for each choice: input_ids, targets (-100 outside of the
    choice), segment_ids int32 [T]; answer int32 []; weights float32 []. If other examples have more
    choices, the extra sides have no targets. Examples that are longer than the greatest length with
    one of their choices are left out, and counted in the notes.

    Options: normalised and unlikely, the weights (1 each); separator (a space).

    Scores: accuracy, of the choice with the greatest mean log-probability of a token.

    Raises:
        SettingsError: an option that the task does not have; nothing left to train on.
        ValueError: fewer than two choices, or a label that is none of them.

    Source: Liu et al. 2022 (arXiv:2205.05638), section 3.2.
    """
    options = base.options_of(settings, separator=' ', normalised=1.0, unlikely=1.0)
    tokenizer = base.needed(model, settings)
    longest = max(settings.data.lengths, default=base.most_tokens(model))

    columns = settings.data.columns

    def side(text: str, choice: str) -> Row | None:
        """The arrays of a text with a choice; None if they are longer than the greatest length."""
        prompt = tokenizer.encode(text)
        answer = tokenizer.encode(options['separator'] + choice, add_special_tokens=False)
        if not answer or len(prompt) + len(answer) - 1 > longest:
            return None
        row = chat_row(prompt, answer, longest)
        targets = np.where(row['weights'] > 0, row['targets'], -100).astype(np.int32)
        return {**{name: row[name] for name in _ARRAYS}, 'targets': targets}

    def row(record: Record) -> Row:
        text, texts = base.text_of(record, columns['text']), _texts(record, columns['choices'])
        number = _number(record[columns['label']], texts)
        return {'sides': [side(text, each) for each in texts], 'answer': number}

    used = [columns[name] for name in ('text', 'choices', 'label') if name in columns]
    found = base.read_rows(settings, used, row)
    most = max((len(row['sides']) for rows in found.values() for row in rows), default=0)
    splits: base.Splits = {
        name: [_joined(row, most) for row in rows if None not in row['sides']]
        for name, rows in found.items()
    }
    if missing := [name for name, rows in splits.items() if not rows]:
        raise SettingsError(
            f'{settings.data.source}: no example of {missing[0]} fits {longest} tokens; write a '
            'greater --data.lengths'
        )
    count, left = (sum(map(len, each.values())) for each in (found, splits))
    note = f'{count - left:,} of {count:,} examples were left out: longer than {longest} tokens'
    return Task(
        splits=splits,
        totals=_totals(options['normalised'], options['unlikely']),
        best='accuracy',
        batch_size=settings.data.batch_size,
        eval_batch_size=settings.data.eval_batch_size,
        lengths=base.lengths_of(settings, model, base.sizes_of(splits)),
        notes=(note,) if left < count else (),
    )


def _texts(record: Mapping[str, Any], column: str) -> list[str]:
    texts: Any = record.get(column)
    listed = isinstance(texts, list | tuple) and len(texts) > 1
    if not listed or not all(isinstance(each, str) for each in texts):
        raise ValueError(
            f'column {column!r} holds {str(texts)[:80]!r}, which is no list of two or more texts'
        )
    return list(texts)


def _number(label: Any, texts: Sequence[str]) -> np.int32:
    """The number of the right choice: a text is looked up first, or else read as a number."""
    if isinstance(label, str) and label in texts:
        if texts.count(label) > 1:
            raise ValueError(f'the right choice {label!r} occurs twice in {texts}')
        return np.int32(texts.index(label))
    number = int(label) if isinstance(label, str) and label.isdecimal() else label
    if type(number) is int and 0 <= number < len(texts):
        return np.int32(number)
    raise ValueError(f'label {label!r} is none of {texts}, nor a number from 0 to {len(texts) - 1}')


def _joined(row: Row, most: int) -> Row:
    """The sides of an example as one row of `most` sides; the extra ones have no targets."""
    found = row['sides']
    missing = {**found[0], 'targets': np.full_like(found[0]['targets'], -100)}
    made = sides.join_sides([*found, *[missing] * (most - len(found))])
    return {**made, 'answer': row['answer'], 'weights': np.float32(1)}


def _scored(forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of tokens, and a mask of those that count, [B, C, L]."""
    count = sum(sides.side_name('input_ids', i) in batch for i in range(len(batch)))
    inputs = sides.stack_sides(batch, count, _ARRAYS)
    given = base.decoder_inputs(inputs)
    scores: peftjax.TokenScores = forward(given)

    def by_example(values: jax.Array) -> jax.Array:
        return jnp.swapaxes(values.reshape(count, -1, values.shape[-1]), 0, 1)

    return by_example(-scores.losses), by_example(given['targets'] >= 0)


def _totals(normalised: float, unlikely: float) -> Callable[[Forward, Batch], Totals]:
    def one(log_probs: jax.Array, mask: jax.Array, answer: jax.Array) -> jax.Array:
        """The loss of one example."""
        each = log_probs[None], mask[None], answer[None]
        own = jnp.where(mask[answer], -log_probs[answer], 0.0).sum()
        own = own / jnp.maximum(mask[answer].sum(dtype=jnp.float32), 1.0)
        rest = normalised * length_normalised_loss(*each) + unlikely * unlikelihood_loss(*each)
        return own + rest

    def totals(forward: Forward, batch: Batch) -> Totals:
        log_probs, mask = _scored(forward, batch)
        answers = jnp.asarray(batch['answer'])
        losses = jax.vmap(one)(log_probs, mask, answers)
        best = jnp.argmax(choice_scores(log_probs, mask), -1).astype(answers.dtype)
        values = {'loss': losses, 'accuracy': (best == answers).astype(jnp.float32)}
        return sides.weighted(values, batch['weights'])

    return totals
