"""Makes batches of a few static shapes from rows of tokens, in an order that a seed decides.

Rows of similar length share a batch, so little work goes into padding, and each batch is padded to
one of a few lengths, so few programs are compiled. The order of a whole run is planned at its
start; a checkpoint keeps only the position in the plan.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from peftjax.train.data.images import Images
from peftjax.train.data.packing import Row, pad

Batch = dict[str, np.ndarray]


class Part(NamedTuple):
    """The part of a batch that one process holds.

    Attributes:
        rows: the rows of the batch that it was asked for.
        tokens: number of tokens in the whole batch, without padding; for images, their number.
    """

    rows: Any
    tokens: Any


# One thread, two batches ahead of the step: more would take cores from it on a small machine.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


def plan_epoch(
    sizes: np.ndarray, *, batch_size: int, seed: int, epoch: int, window: int = 16
) -> list[np.ndarray]:
    """The batches of one pass over the rows: arrays of `batch_size` row numbers.

    Rows are shuffled, sorted by size within windows of `window` batches, and cut into batches,
    which are shuffled. The rows left over, fewer than a batch, differ from epoch to epoch.

    Args:
        sizes: int [rows], the length of each row.
        batch_size, window: rows in a batch, batches in a window.
        seed, epoch: decide the order together.

    Raises:
        ValueError: there are fewer rows than one batch needs.
    """
    if len(sizes) < batch_size:
        raise ValueError(f'{len(sizes)} rows do not fill one batch of {batch_size}')
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(sizes))
    order = order[: len(order) // batch_size * batch_size]
    span = window * batch_size
    windows = [order[start : start + span] for start in range(0, len(order), span)]
    ordered = np.concatenate([rows[np.argsort(sizes[rows], kind='stable')] for rows in windows])
    return list(rng.permutation(ordered.reshape(-1, batch_size)))


def collate(rows: Sequence[Row], lengths: Sequence[int], longest: int | None = None) -> Batch:
    """Stacks rows, padded to the least of `lengths` that holds the longest; images stay unpadded.

    longest: the longest length in the whole batch, if `rows` are a part of it.

    Raises:
        ValueError: a row is longer than every one of `lengths`.
    """
    if 'input_ids' not in rows[0]:
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    longest = max(len(row['input_ids']) for row in rows) if longest is None else longest
    fitting = [length for length in lengths if length >= longest]
    if not fitting:
        raise ValueError(f'a row has {longest} tokens, more than the greatest length {lengths}')
    padded = [pad(row, min(fitting)) for row in rows]
    return {name: np.stack([row[name] for row in padded]) for name in padded[0]}


def row_sizes(rows: Sequence[Row]) -> np.ndarray:
    """int [rows]: the number of tokens of each row; 0 for images, which are not read for it."""
    if isinstance(rows, Images):
        return rows.sizes()
    if not _has_tokens(rows):
        return np.zeros(len(rows), np.int64)
    return np.asarray([len(row['input_ids']) for row in rows])


def row_tokens(rows: Sequence[Row]) -> np.ndarray:
    """int [rows]: the number of tokens of each row, without padding; 1 for rows without tokens."""
    if isinstance(rows, Images) or not _has_tokens(rows):
        return np.ones(len(rows), np.int64)
    return np.asarray([np.count_nonzero(row['segment_ids']) for row in rows])


def _has_tokens(rows: Sequence[Row]) -> bool:
    return len(rows) > 0 and {'input_ids', 'segment_ids'} <= rows[0].keys()


def train_batches(
    rows: Sequence[Row],
    *,
    batch_size: int,
    lengths: Sequence[int],
    seed: int,
    steps: int,
    local: np.ndarray | None = None,
) -> grain.DatasetIterator[Part]:
    """The batches of a run of `steps` steps.

    local: places in a batch whose rows this process reads; None reads all.

    The iterator's `get_state` and `set_state` give and take its position, so a run can be resumed
    where it was.
    """
    sizes, tokens = row_sizes(rows), row_tokens(rows)
    plan = _plan(sizes, batch_size=batch_size, seed=seed, steps=steps)
    dataset = grain.MapDataset.source(plan)

    def part(chosen: np.ndarray) -> Part:
        read = chosen if local is None else chosen[local]
        batch = collate([rows[i] for i in read], lengths, longest=int(sizes[chosen].max()))
        return Part(batch, int(tokens[chosen].sum()))

    dataset = dataset.map(part)
    return iter(dataset.to_iter_dataset(_READ))


def train_batches_of_seeds(
    rows: Sequence[Row],
    *,
    batch_size: int,
    lengths: Sequence[int],
    seeds: Sequence[int],
    steps: int,
) -> grain.DatasetIterator[Part]:
    """The batches of several runs side by side: those of `train_batches` for each seed.

    The `rows` of a part are one batch for each seed, and its `tokens` one number for each.
    """
    sizes, tokens = row_sizes(rows), row_tokens(rows)
    plans = [_plan(sizes, batch_size=batch_size, seed=seed, steps=steps) for seed in seeds]
    dataset = grain.MapDataset.source(list(np.stack(plans, axis=1)))

    def part(chosen: np.ndarray) -> Part:
        batches = [
            collate([rows[i] for i in each], lengths, int(sizes[each].max())) for each in chosen
        ]
        return Part(batches, tokens[chosen].sum(axis=1))

    return iter(dataset.map(part).to_iter_dataset(_READ))


def beside(batches: Sequence[Batch]) -> Batch:
    """Stacks batches to `[batches, batch_size, ...]`; shorter rows are padded to the longest.

    Example:
        >>> both = [{'input_ids': np.ones((2, length))} for length in (3, 5)]
        >>> beside(both)['input_ids'].shape
        (2, 2, 5)
    """
    if 'input_ids' in batches[0]:
        longest = max(batch['input_ids'].shape[1] for batch in batches)
        batches = [_padded(batch, longest) for batch in batches]
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _padded(batch: Batch, longest: int) -> Batch:
    """Pads rows of tokens with zeros at the end; arrays without that axis stay as they are."""
    length = batch['input_ids'].shape[1]
    return {
        name: np.pad(rows, [(0, 0), (0, longest - length), *[(0, 0)] * (rows.ndim - 2)])
        if rows.ndim > 1 and rows.shape[1] == length
        else rows
        for name, rows in batch.items()
    }


def _plan(sizes: np.ndarray, *, batch_size: int, seed: int, steps: int) -> list[np.ndarray]:
    """The batches of a run of `steps` steps, epoch after epoch."""
    plan: list[np.ndarray] = []
    for epoch in itertools.count():
        if len(plan) >= steps:
            break
        plan.extend(plan_epoch(sizes, batch_size=batch_size, seed=seed, epoch=epoch))
    return plan[:steps]


def eval_batches(
    rows: Sequence[Row],
    *,
    batch_size: int,
    lengths: Sequence[int],
    local: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Every row once, shortest first; the last batch is filled with copies of weight 0.

    If rows have no weights, the last batch is smaller, since nothing would mark the copies.

    local: as for `train_batches`.
    """
    sizes = row_sizes(rows)
    order = np.argsort(sizes, kind='stable')
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = batch_size if 'weights' in rows[chosen[0]] else len(chosen)
        places = np.arange(filled) if local is None or filled < batch_size else local
        read = [rows[chosen[min(place, len(chosen) - 1)]] for place in places]
        for i, place in enumerate(places):
            if place >= len(chosen):
                read[i] = {**read[i], 'weights': np.zeros_like(read[i]['weights'])}
        yield collate(read, lengths, longest=int(sizes[chosen].max()))
