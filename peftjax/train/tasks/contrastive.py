"""Sentence encoders: vectors of texts that belong together are near, and others are far."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.train.data.packing import Row
from peftjax.train.data.tables import Record
from peftjax.train.losses.contrastive import info_nce_loss, mean_pool, unit
from peftjax.train.metrics.retrieval import recall_at, reciprocal_rank
from peftjax.train.settings import Settings
from peftjax.train.task import Batch, Forward, Metric, Task, Totals
from peftjax.train.tasks import base, sides

_METRICS = (
    Metric('recall_at_1', recall_at(1)),
    Metric('recall_at_5', recall_at(5)),
    Metric('mrr', reciprocal_rank),
)


def contrastive(settings: Settings, model: peftjax.Model) -> Task:
    """Columns anchor and positive, and negative if there is one: pairs of texts that match.

    The model is an encoder without a head; the vector of a text is the mean of the last hidden
    states of its tokens. The loss is `losses.contrastive.info_nce_loss`: each anchor's own positive
    against all positives and negatives of the batch. A text that equals the anchor or its positive
    is no negative of it. If data.columns.group names a column of classes, neither is a positive of
    the same group. The greater the batch, the more negatives; parts of an accumulated batch do not
    see each other.

    A row (`sides.join_sides`) has two or three sides: input_ids, segment_ids int32 [T], and text
    int32 [], a number for each different text. It also has group int32 [], -1 if there is none, and
    weights float32 [].

    Options: scale, the inverse of the temperature (20); symmetric: the mean of both directions,
    from anchors to positives and back (False).

    Scores: recall_at_1, recall_at_5 and mrr among the positives of the whole split
    (`metrics.retrieval.right_ranks`). A prediction is the vector of the record's anchor, of
    length 1.

    Raises:
        ValueError: from the loss, if the model returns no hidden states.
    """
    options = base.options_of(settings, scale=20.0, symmetric=False)
    columns, tokenizer = settings.data.columns, base.needed(model, settings)
    longest = max(settings.data.lengths, default=base.most_tokens(model))
    backend = base.cutting(tokenizer, longest)
    roles = [name for name in ('anchor', 'positive', 'negative') if name in columns]
    texts: dict[str, int] = {}
    groups: dict[str, int] = {}

    def encode(text: str) -> Row:
        ids = np.asarray(backend.encode(text).ids, np.int32)
        return {'input_ids': ids, 'segment_ids': np.ones_like(ids)}

    def row(record: Record) -> Row:
        found = [base.text_of(record, columns[name]) for name in roles]
        numbers = [np.int32(texts.setdefault(text, len(texts))) for text in found]
        made = [{**encode(t), 'text': n} for t, n in zip(found, numbers, strict=True)]
        group = -1
        if 'group' in columns:
            group = groups.setdefault(str(record[columns['group']]), len(groups))
        return {**sides.join_sides(made), 'group': np.int32(group), 'weights': np.float32(1)}

    def totals(forward: Forward, batch: Batch) -> Totals:
        anchors, candidates = _vectors(forward, batch)
        size = anchors.shape[0]
        losses = info_nce_loss(anchors, candidates, excluded(batch), options['scale'])
        if options['symmetric']:
            back = excluded(batch, back=True)
            losses += info_nce_loss(candidates[:size], anchors, back, options['scale'])
            losses = losses / 2.0
        return sides.weighted({'loss': losses}, batch['weights'])

    names = [*roles, *(name for name in ('group',) if name in columns)]
    splits = base.read_rows(settings, [columns[name] for name in names], row)
    return Task(
        splits=splits,
        totals=totals,
        outputs=_outputs,
        metrics=_METRICS,
        best='mrr',
        batch_size=settings.data.batch_size,
        eval_batch_size=settings.data.eval_batch_size,
        lengths=base.lengths_of(settings, model, base.sizes_of(splits)),
        row=lambda record: encode(base.text_of(record, columns['anchor'])),
        answer=lambda found: {'embedding': np.asarray(found['anchors'], np.float64).tolist()},
    )


def excluded(batch: Batch, back: bool = False) -> jax.Array:
    """Candidates that are no negatives of an anchor, bool [B, C]: padding and right answers.

    back: take the positives as anchors, and the anchors as candidates.

    Example:
        >>> batch = {'text': jnp.asarray([0, 1, 2]), 'text:1': jnp.asarray([3, 3, 4]),
        ...          'group': jnp.asarray([-1, -1, -1]), 'weights': jnp.asarray([1.0, 1.0, 0.0])}
        >>> excluded(batch).astype(int).tolist()  # one positive twice, and a row of weight 0
        [[1, 1, 1], [1, 1, 1], [0, 0, 1]]
    """
    count = _count(batch)
    pairs = [jnp.asarray(batch[sides.side_name('text', i)]) for i in range(count)]
    group = jnp.asarray(batch['group'])
    others = pairs[:1] if back else pairs[1:]
    filled = jnp.asarray(batch['weights'] > 0)
    texts = jnp.concatenate(others)[None]
    # The classes of negatives are not known.
    groups = jnp.concatenate([group, *[jnp.full_like(group, -1)] * (len(others) - 1)])[None]
    same = (texts == pairs[0][:, None]) | (texts == pairs[1][:, None])
    same_group = (groups == group[:, None]) & (groups >= 0)
    return same | same_group | ~jnp.concatenate([filled] * len(others))[None]


def _count(batch: Batch) -> int:
    """How many texts a row has."""
    return 1 + sum(f'text:{i}' in batch for i in (1, 2))


def _vectors(forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Vectors of the anchors [B, D] and of their candidates [C, D], from one call of the model."""
    inputs = sides.stack_sides(batch, _count(batch), ('input_ids', 'segment_ids'))
    mask = inputs['segment_ids'] > 0
    result = forward({'input_ids': inputs['input_ids'], 'attention_mask': mask})
    if not hasattr(result, 'last_hidden_state'):
        raise ValueError(
            "task 'contrastive' reads the last hidden states of an encoder, such as BERT's, loaded "
            f'without a head; this model returns {type(result).__name__}'
        )
    pooled = mean_pool(result.last_hidden_state, mask)
    size = batch['input_ids'].shape[0]
    return pooled[:size], pooled[size:]


def _outputs(forward: Forward, batch: Batch) -> Mapping[str, Any]:
    """Vectors of length 1 of anchors and positives; only of anchors if rows have one side."""
    anchors, candidates = _vectors(forward, batch)
    found: dict[str, Any] = {'anchors': unit(anchors)}
    if candidates.shape[0]:
        numbers = {name: batch[name] for name in ('text', 'text:1', 'group')}
        found |= {'positives': unit(candidates[: anchors.shape[0]]), **numbers}
    return found
