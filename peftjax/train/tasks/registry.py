"""What a run learns: the rows of each split, how a batch enters the model, and what is counted.

A new data set is one function here and one line in TASKS.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import peftjax
from peftjax.train.data import corpora
from peftjax.train.data.packing import Row, chat_row, pack
from peftjax.train.settings import DataSettings, Settings, SettingsError
from peftjax.train.task import Batch, Forward, Task, Totals
from peftjax.train.tasks import own_data

TaskFactory = Callable[[Settings, peftjax.Model], Task]


def film_reviews(settings: Settings, model: peftjax.Model) -> Task:
    """Is a sentence from a favourable review? Films of one split are in no other.

    A row: input_ids, segment_ids int32 [T], cut at the greatest length; targets int32 []; weights
    float32 [].
    """
    data, tokenizer = settings.data, own_data.needed(model.tokenizer, settings)
    reviews = corpora.split_by_film(corpora.read_reviews(_path(data.source)))
    longest = max(data.lengths)

    def row(review: corpora.Review) -> Row:
        ids = np.asarray(tokenizer.encode(review.text)[:longest], np.int32)
        return {
            'input_ids': ids,
            'segment_ids': np.ones_like(ids),
            'targets': np.int32(review.label),
            'weights': np.float32(1.0),
        }

    splits = {
        name: [row(review) for review in _limit(split, data)] for name, split in reviews.items()
    }
    return task_of(settings, splits, encoder_inputs)


def gsm8k(settings: Settings, model: peftjax.Model) -> Task:
    """Word problems answered step by step, in the chat format of SmolLM2-Instruct.

    The loss covers the answer and the end-of-turn token. Rows are `packing.chat_row`s, with
    `data.packing` several to a row of the greatest length. Longer problems are cut there.
    """
    data, tokenizer = settings.data, own_data.needed(model.tokenizer, settings)
    problems = corpora.split_problems(corpora.read_problems(_path(data.source)))
    longest = max(data.lengths)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def row(problem: corpora.Problem) -> Row:
        prompt = f'<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n'
        return chat_row(ids(prompt), ids(f'{problem.answer}<|im_end|>'), longest)

    splits = {
        name: [row(problem) for problem in _limit(split, data)] for name, split in problems.items()
    }
    if data.packing:
        splits = {name: pack(rows, longest) for name, rows in splits.items()}
    return task_of(settings, splits, decoder_inputs)


def task_of(
    settings: Settings,
    splits: Mapping[str, Sequence[Row]],
    inputs: Callable[[Batch], dict[str, Any]],
) -> Task:
    """A task whose loss is the cross-entropy of targets, and whose score is the accuracy."""
    data = settings.data

    def totals(forward: Forward, batch: Batch) -> Totals:
        return weighted_totals(forward(inputs(batch)), batch)

    return Task(
        splits=splits,
        totals=totals,
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        lengths=data.lengths,
    )


def _own(
    rows: Callable[[Settings, peftjax.Model], own_data.Splits],
    inputs: Callable[[Batch], dict[str, Any]],
) -> TaskFactory:
    return lambda settings, model: task_of(settings, rows(settings, model), inputs)


def weighted_totals(result: jax.Array | peftjax.TokenScores, batch: Batch) -> Totals:
    """Totals of cross-entropy and of right answers, weighted.

    Args:
        result: logits [..., classes], computed with in float32; or what a decoder, given targets,
            makes of them.
        batch: 'targets' int [...] and 'weights' float [...]; a target below 0 counts nowhere.
    """
    counted = jnp.asarray(batch['targets']) >= 0
    if not isinstance(result, peftjax.TokenScores):
        logits = result.astype(jnp.float32)
        labels = jnp.where(counted, batch['targets'], 0)
        result = peftjax.TokenScores(
            optax.softmax_cross_entropy_with_integer_labels(logits, labels),
            jnp.argmax(logits, axis=-1) == batch['targets'],
            counted,
        )
    weights = jnp.where(counted, batch['weights'], 0.0)
    return {
        'loss': jnp.sum(result.losses * weights),
        'accuracy': jnp.sum(jnp.where(result.correct, weights, 0.0)),
        'weights': jnp.sum(weights),
    }


def encoder_inputs(batch: Batch) -> dict[str, Any]:
    """Tokens, which of them are real, and for pairs which text each belongs to."""
    types = {name: batch[name] for name in ('token_type_ids',) if name in batch}
    return {'input_ids': batch['input_ids'], 'attention_mask': batch['segment_ids'] > 0, **types}


def decoder_inputs(batch: Batch) -> dict[str, Any]:
    """Tokens, which row of several they belong to, their places in it, and what follows each."""
    names = ('input_ids', 'segment_ids', 'position_ids', 'targets')
    return {name: batch[name] for name in names}


def seq2seq_inputs(batch: Batch) -> dict[str, Any]:
    """Tokens of both sides, which of them are real, and what follows each that is written."""
    return {
        **{name: batch[name] for name in ('input_ids', 'decoder_input_ids', 'targets')},
        'attention_mask': batch['segment_ids'] > 0,
        'decoder_attention_mask': batch['decoder_segment_ids'] > 0,
    }


def image_inputs(batch: Batch) -> dict[str, Any]:
    """The pixels."""
    return {'pixel_values': batch['pixel_values']}


def _path(source: str) -> Path:
    return peftjax.package_path(source) if source.startswith('package:') else Path(source)


def _limit(split: list, data: DataSettings) -> list:
    return split[: data.limit] if data.limit else split


TASKS: Mapping[str, TaskFactory] = {
    'film_reviews': film_reviews,
    'gsm8k': gsm8k,
    'classification': _own(own_data.labelled_texts, encoder_inputs),
    'instructions': _own(own_data.instructions, decoder_inputs),
    'seq2seq': _own(own_data.text_to_text, seq2seq_inputs),
    'images': _own(own_data.labelled_images, image_inputs),
}


HEADS: Mapping[str, str] = {
    'gsm8k': 'causal_lm',
    'instructions': 'causal_lm',
    'seq2seq': 'seq2seq_lm',
}


def head_of(task: str) -> str:
    """The head that a task needs, as `peftjax.load` names it."""
    return HEADS.get(task, 'classification')


def find_task(name: str) -> TaskFactory:
    """A task by its name.

    Raises:
        SettingsError: unknown, with the names that are known.
    """
    if name not in TASKS:
        raise SettingsError(f'unknown task {name!r}; known: {", ".join(TASKS)}')
    return TASKS[name]
