"""Texts that a model writes: plain text, instructions, conversations, and text to text."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import peftjax
from peftjax.train.data.packing import Row, pack, seq2seq_row
from peftjax.train.data.tables import Record, read_splits
from peftjax.train.metrics.registry import metrics_of
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.task import Batch, Evaluator, Forward, Task, Totals
from peftjax.train.tasks import base
from peftjax.train.tasks.conversations import chat_prompt, chats, conversation
from peftjax.train.tasks.generated import Generated, Writer, generation_options

Prompts = dict[str, list[tuple[list[int], Sequence[str]]]]
"""For each split, the tokens of prompts, and the reference answers of each."""


def text(settings: Settings, model: peftjax.Model) -> Task:
    """The column text, token after token; the loss covers every token but the first.

    Rows are `packing.chat_row`s whose prompt is the first token; with data.packing, several share a
    row of the greatest length. Longer texts are cut there.

    Options: label_smoothing; metrics: perplexity (the default); max_new_tokens, of predictions,
    which continue a text.
    """
    options = base.options_of(
        settings, label_smoothing=0.0, metrics=('perplexity',), max_new_tokens=128
    )
    tokenizer, column = base.needed(model, settings), settings.data.columns['text']
    longest = max(settings.data.lengths, default=base.most_tokens(model))
    eos, rows = tokenizer.eos_id, base.ChatRows(longest)

    def prompt(record: Mapping[str, Any]) -> list[int]:
        ids = tokenizer.encode(base.text_of(record, column))
        return ids[:-1] if ids and ids[-1] == eos else ids

    def row(record: Record) -> Row | None:
        ids = [*prompt(record), *([] if eos is None else [eos])]
        return rows.row(ids[:1], ids[1:]) if len(ids) > 1 else None

    splits = base.read_rows(settings, (column,), row)
    task = decoder_task(settings, model, splits, rows, options)
    return dataclasses.replace(
        task, predict=writer_of(model, tokenizer, options).predictions(prompt)
    )


def instructions(settings: Settings, model: peftjax.Model) -> Task:
    """A prompt and its answer, or a conversation that ends with an answer.

    Columns prompt and answer, with Alpaca's column input beside them; or messages, as roles and
    contents or in ShareGPT's words (from, value). The chat template of the settings, or the
    checkpoint's own, writes the conversation; the loss covers the text after the generation prompt,
    including the end of the turn. With data.packing, several examples share a row. Examples are cut
    at the greatest length, and left out if nothing of the answer is left.

    Options: label_smoothing; metrics (perplexity), and those of `generated`, which are scores of
    texts that the model writes.

    Raises:
        SettingsError: no chat template.
        ValueError: a template that writes the prompt differently if an answer follows.
    """
    options = base.options_of(
        settings, label_smoothing=0.0, metrics=('perplexity',), **generation_options()
    )
    tokenizer = base.needed(model, settings)
    longest = max(settings.data.lengths, default=base.most_tokens(model))
    splits: dict[str, list[Row | None]] = {}
    prompts: Prompts = {}
    rows = base.ChatRows(longest)
    if settings.data.source:
        roles = [name for name in ('messages',) if name in settings.data.columns]
        roles = roles or [n for n in ('prompt', 'input', 'answer') if n in settings.data.columns]
        columns = [settings.data.columns[name] for name in roles if name != 'input']
        optional = [settings.data.columns[name] for name in roles if name == 'input']
        for name, records in read_splits(settings.data, columns, optional).items():
            kept = base.limited(records, settings.data)
            written = chats(settings, tokenizer, [conversation(settings, each) for each in kept])
            ids = [tuple(tokenizer.encode(t, add_special_tokens=False) for t in w) for w in written]
            splits[name] = [rows.row(before, answer) for before, answer in ids]
            texts = [r.get('references', [w[1]]) for r, w in zip(kept, written, strict=True)]
            prompts[name] = [(a, each) for (a, _), each in zip(ids, texts, strict=True)]

    def prompt(record: Mapping[str, Any]) -> list[int]:
        before = chat_prompt(settings, tokenizer, record)
        return tokenizer.encode(before, add_special_tokens=False)

    task = decoder_task(settings, model, splits, rows, options)
    return with_generation(task, writer_of(model, tokenizer, options), prompt, prompts, options)


def seq2seq(settings: Settings, model: peftjax.Model) -> Task:
    """Columns text and answer, for an encoder and a decoder: rows are `packing.seq2seq_row`s.

    Options: decoder_start_id, the first token of the decoder (0, T5's padding); label_smoothing;
    metrics (perplexity), and those of `generated`.
    """
    options = base.options_of(
        settings,
        decoder_start_id=0,
        label_smoothing=0.0,
        metrics=('perplexity',),
        **generation_options(),
    )
    tokenizer, columns = base.needed(model, settings), settings.data.columns
    longest = max(settings.data.lengths, default=base.most_tokens(model))
    backend = base.cutting(tokenizer, longest)
    prompts: Prompts = {}

    def ids(record: Mapping[str, Any], role: str) -> list[int]:
        return backend.encode(base.text_of(record, columns[role])).ids

    splits: base.Splits = {}
    if settings.data.source:
        for name, records in read_splits(
            settings.data, [columns['text'], columns['answer']]
        ).items():
            kept = base.limited(records, settings.data)
            pairs = [(ids(record, 'text'), ids(record, 'answer')) for record in kept]
            splits[name] = [seq2seq_row(a, b, options['decoder_start_id']) for a, b in pairs]
            prompts[name] = [
                (a, record.get('references', [record[columns['answer']]]))
                for (a, _), record in zip(pairs, kept, strict=True)
            ]
    lengths = base.lengths_of(settings, model, base.sizes_of(splits))
    task = _written(settings, splits, base.seq2seq_inputs, lengths, options, backend.notes())
    # The decoder's positions are relative, or as many as the encoder's; a prompt takes none.
    writer = Writer(tokenizer, options['max_new_tokens'], None, options['decoder_start_id'])
    return with_generation(task, writer, lambda record: ids(record, 'text'), prompts, options)


def decoder_task(
    settings: Settings,
    model: peftjax.Model,
    found: Mapping[str, Sequence[Row | None]],
    made: base.ChatRows,
    options: Mapping[str, Any],
) -> Task:
    """A task of a decoder, its rows packed if asked; `found` has None for an example left out."""
    notes: list[str] = []
    if made.cut or made.lost:
        notes.append(
            f'{made.cut:,} of {made.made:,} examples were cut at {made.longest} tokens; '
            f'{made.lost:,} of them lost their whole answer and were left out'
        )
    splits: base.Splits = {
        name: [row for row in rows if row is not None] for name, rows in found.items()
    }
    if missing := [name for name, rows in splits.items() if not rows]:
        raise SettingsError(
            f'{settings.data.source}: no example of {missing[0]} has a token of its answer within '
            f'{made.longest} tokens; write a greater --data.lengths'
        )
    lengths = base.lengths_of(settings, model, base.sizes_of(splits))
    if settings.data.packing:
        lengths = (max(lengths),)
        splits = {name: pack(rows, lengths[0]) for name, rows in splits.items()}
    inputs = base.decoder_inputs_of(settings)
    return _written(settings, splits, inputs, lengths, options, tuple(notes))


def _written(
    settings: Settings,
    splits: base.Splits,
    inputs: Callable[[Batch], dict[str, Any]],
    lengths: tuple[int, ...],
    options: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> Task:
    """A task whose loss is the cross-entropy of the next token."""
    smoothing = options['label_smoothing']

    def scores(forward: Forward, batch: Batch) -> Any:
        given = inputs(batch)
        if smoothing:
            del given['targets']
        return forward(given)

    def totals(forward: Forward, batch: Batch) -> Totals:
        return base.weighted_totals(scores(forward, batch), batch, smoothing)

    def outputs(forward: Forward, batch: Batch) -> Mapping[str, jax.Array]:
        found: peftjax.TokenScores = forward(inputs(batch))
        weights = jnp.where(found.counted, batch['weights'], 0.0)
        return {'losses': (found.losses * weights).sum(-1), 'counts': weights.sum(-1)}

    return Task(
        splits=splits,
        totals=totals,
        outputs=outputs,
        metrics=metrics_of(options['metrics']),
        best='-loss',
        batch_size=settings.data.batch_size,
        eval_batch_size=settings.data.eval_batch_size,
        lengths=lengths,
        notes=notes,
    )


def writer_of(
    model: peftjax.Model, tokenizer: peftjax.Tokenizer, options: Mapping[str, Any]
) -> Writer:
    """A writer that continues prompts, within the positions that a decoder has."""
    positions = getattr(model.config, 'max_position_embeddings', None)
    return Writer(tokenizer, options['max_new_tokens'], positions)


def with_generation(
    task: Task,
    writer: Writer,
    prompt: Callable[[Mapping[str, Any]], Sequence[int]],
    prompts: Prompts,
    options: Mapping[str, Any],
) -> Task:
    """The task with predictions, and with scores of generated texts if the options name some.

    Args:
        task: a task without them.
        writer: continues prompts.
        prompt: from a record to the tokens of its prompt.
        prompts: of the splits.
        options: of `generation_options`.
    """
    task = dataclasses.replace(task, predict=writer.predictions(prompt))
    if not options['generated']:
        return task
    scores = Generated(prompts, writer, options['generated'], options['generated_limit'])
    notes = list(task.notes)
    if scores.left_out:
        notes.append(f'{scores.left_out:,} prompts are too long to be continued')
    evaluator: Evaluator = scores
    return dataclasses.replace(task, evaluators=(*task.evaluators, evaluator), notes=tuple(notes))
