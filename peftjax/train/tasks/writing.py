"""Texts that a model writes: plain text, instructions, conversations, and text to text."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import peftjax
from peftjax.train.data.chat_template import write_conversations
from peftjax.train.data.packing import Row, chat_row, pack, seq2seq_row
from peftjax.train.data.tables import Record, read_splits
from peftjax.train.metrics.registry import metrics_of
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.task import Batch, Evaluator, Forward, Task, Totals
from peftjax.train.tasks import base
from peftjax.train.tasks.generated import Generated, generation_options

Prompts = dict[str, list[tuple[list[int], str]]]
"""Of each split, the tokens of prompts and the texts of their answers."""


def text(settings: Settings, model: peftjax.Model) -> Task:
    """The column text, token after token; the loss covers every token but the first.

    Rows are `packing.chat_row`s without a prompt; with data.packing several share a row of the
    greatest length. Longer texts are cut there.

    Options: label_smoothing; metrics: perplexity (unless given).
    """
    options = base.options_of(settings, label_smoothing=0.0, metrics=('perplexity',))
    tokenizer, column = base.needed(model, settings), settings.data.columns['text']
    longest = max(settings.data.lengths, default=base.most_tokens(model))
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]

    def row(record: Record) -> Row | None:
        ids = [*tokenizer.encode(base.text_of(record, column)), *end]
        return chat_row(ids[:1], ids[1:], longest) if len(ids) > 1 else None

    splits = base.read_rows(settings, (column,), row)
    return decoder_task(settings, model, splits, longest, options)


def instructions(settings: Settings, model: peftjax.Model) -> Task:
    """A prompt and its answer, or a conversation that ends with an answer.

    Columns prompt and answer, with Alpaca's column input beside them; or messages, as roles and
    contents or in ShareGPT's words (from, value). The chat template of the settings, or the
    checkpoint's own, writes the conversation; the loss covers what stands behind the generation
    prompt, the end of the turn included. With data.packing several examples share a row. Examples
    are cut at the greatest length, and left out where nothing of the answer is left.

    Options: label_smoothing; metrics (perplexity), and those of `generated`, which are scores of
    texts that the model writes.

    Raises:
        SettingsError: no chat template.
        ValueError: a template that writes the prompt otherwise once it is answered.
    """
    options = base.options_of(
        settings, label_smoothing=0.0, metrics=('perplexity',), **generation_options()
    )
    tokenizer = base.needed(model, settings)
    longest = max(settings.data.lengths, default=base.most_tokens(model))
    splits: base.Splits = {}
    prompts: Prompts = {}
    if settings.data.source:
        roles = [name for name in ('messages',) if name in settings.data.columns]
        roles = roles or [n for n in ('prompt', 'input', 'answer') if n in settings.data.columns]
        columns = [settings.data.columns[name] for name in roles if name != 'input']
        optional = [settings.data.columns[name] for name in roles if name == 'input']
        for name, records in read_splits(settings.data, columns, optional).items():
            kept = base.limited(records, settings.data)
            written = chats(settings, tokenizer, [conversation(settings, each) for each in kept])
            ids = [(tokenizer.encode(a, add_special_tokens=False), b) for a, b in written]
            ends = [tokenizer.encode(b, add_special_tokens=False) for _, b in ids]
            splits[name] = [chat_row(a, b, longest) for (a, _), b in zip(ids, ends, strict=True)]
            prompts[name] = [(a, b) for a, b in ids if len(a) < longest]
    task = decoder_task(settings, model, splits, longest, options)
    return _with_generation(task, prompts, tokenizer, options)


def seq2seq(settings: Settings, model: peftjax.Model) -> Task:
    """Columns text and answer, for an encoder and a decoder: rows are `packing.seq2seq_row`s.

    Options: decoder_start_id begins what the decoder writes (0, its padding, for T5);
    label_smoothing; metrics (perplexity), and those of `generated`.
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

    def sides(record: Record) -> tuple[list[int], list[int]]:
        found = (base.text_of(record, columns[name]) for name in ('text', 'answer'))
        source, answer = (backend.encode(each).ids for each in found)
        return source, answer

    splits: base.Splits = {}
    if settings.data.source:
        for name, records in read_splits(
            settings.data, [columns['text'], columns['answer']]
        ).items():
            kept = base.limited(records, settings.data)
            pairs = [sides(record) for record in kept]
            splits[name] = [seq2seq_row(a, b, options['decoder_start_id']) for a, b in pairs]
            prompts[name] = [
                (a, record[columns['answer']]) for (a, _), record in zip(pairs, kept, strict=True)
            ]
    lengths = base.lengths_of(settings, model, base.sizes_of(splits))
    task = _written(settings, splits, base.seq2seq_inputs, lengths, options)
    return _with_generation(task, prompts, tokenizer, options)


def conversation(settings: Settings, record: Mapping[str, Any]) -> list[Any]:
    """The messages of a record, as roles and contents, the answer last."""
    columns = settings.data.columns
    if 'messages' not in columns:
        prompt = base.text_of(record, columns['prompt'])
        more = record.get(columns['input']) if 'input' in columns else None
        prompt = f'{prompt}\n\n{more}' if more else prompt
        return [
            {'role': 'user', 'content': prompt},
            {'role': 'assistant', 'content': base.text_of(record, columns['answer'])},
        ]
    messages = record[columns['messages']]
    if isinstance(messages, list | tuple):
        messages = [_message(each) for each in messages]
    fitting = isinstance(messages, list) and len(messages) > 1
    if not fitting or not all(each is not None for each in messages):
        raise ValueError(
            f'{columns["messages"]} is {str(record[columns["messages"]])[:80]}; a conversation is '
            "a list of at least two {'role': ..., 'content': ...}"
        )
    if messages[-1]['role'] != 'assistant':
        raise ValueError(f'a conversation ends with {messages[-1]["role"]!r} and not an answer')
    return messages


_SHARE_GPT = {'human': 'user', 'gpt': 'assistant', 'user': 'user', 'assistant': 'assistant'}


def _message(message: Any) -> Any:
    """A message as a role and a content; None for anything else."""
    if not isinstance(message, dict):
        return None
    if {'from', 'value'} <= set(message) and isinstance(message['from'], str):
        role = _SHARE_GPT.get(message['from'], message['from'])
        return {'role': role, 'content': message['value']}
    return message if {'role', 'content'} <= set(message) else None


def chats(
    settings: Settings, tokenizer: peftjax.Tokenizer, conversations: Sequence[Sequence[Any]]
) -> list[tuple[str, str]]:
    """Each conversation as (text in front of its last message, text of that message)."""
    written = write_conversations(
        template_of(settings, tokenizer), conversations, special_tokens(tokenizer)
    )
    pairs = []
    for prompt, whole in written:
        if not whole.startswith(prompt):
            raise ValueError(
                f'the chat template writes {prompt[-80:]!r} in front of an answer and not once it '
                'is answered, so that the loss would not know where the answer begins'
            )
        pairs.append((prompt, whole[len(prompt) :]))
    return pairs


def template_of(settings: Settings, tokenizer: peftjax.Tokenizer) -> str:
    """The chat template of the settings, a text or a file, or the checkpoint's own.

    Raises:
        SettingsError: there is none.
    """
    given = settings.data.chat_template
    if given is not None:
        file = Path(given) if '{' not in given else None
        if file is not None and not file.is_file():
            raise SettingsError(f'data.chat_template {given!r} is neither a template nor a file')
        return given if file is None else file.read_text(encoding='utf-8')
    if tokenizer.chat_template is None:
        raise SettingsError(
            f'{settings.model.source} has no chat template, which {settings.task} needs; take an '
            'instruction-tuned checkpoint, or write --data.chat_template FILE'
        )
    return tokenizer.chat_template


def special_tokens(tokenizer: peftjax.Tokenizer) -> dict[str, str]:
    """Texts of special tokens, by the names that templates know them by."""
    ids = (('bos_token', tokenizer.bos_id), ('eos_token', tokenizer.eos_id))
    return {
        name: '' if number is None else tokenizer.decode([number], skip_special_tokens=False)
        for name, number in ids
    }


def decoder_task(
    settings: Settings,
    model: peftjax.Model,
    splits: base.Splits,
    longest: int,
    options: Mapping[str, Any],
) -> Task:
    """Rows of a decoder: those without a token that counts are left out, and packed if asked."""
    notes: list[str] = []
    whole = [row for rows in splits.values() for row in rows]
    full = sum(len(row['input_ids']) >= longest for row in whole)
    empty = sum(not row['weights'].any() for row in whole)
    if full:
        notes.append(f'{full:,} of {len(whole):,} examples were cut at {longest} tokens')
    if empty:
        notes.append(
            f'{empty:,} of {len(whole):,} examples were left out: nothing of the answer was left'
        )
    splits = {name: [row for row in rows if row['weights'].any()] for name, rows in splits.items()}
    if missing := [name for name, rows in splits.items() if not rows]:
        raise SettingsError(
            f'{settings.data.source}: no example of {missing[0]} has a token of its answer within '
            f'{longest} tokens; write a greater --data.lengths'
        )
    lengths = base.lengths_of(settings, model, base.sizes_of(splits))
    if settings.data.packing:
        lengths = (max(lengths),)
        splits = {name: pack(rows, lengths[0]) for name, rows in splits.items()}
    return _written(settings, splits, base.decoder_inputs, lengths, options, tuple(notes))


def _written(
    settings: Settings,
    splits: base.Splits,
    inputs: Callable[[Batch], dict[str, Any]],
    lengths: tuple[int, ...],
    options: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> Task:
    """A task whose loss is that of the next token."""
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


def _with_generation(
    task: Task, prompts: Prompts, tokenizer: peftjax.Tokenizer, options: Mapping[str, Any]
) -> Task:
    """The task, with scores of generated texts where the options name some."""
    if not options['generated']:
        return task
    evaluator: Evaluator = Generated(
        prompts,
        tokenizer,
        options['generated'],
        options['max_new_tokens'],
        options['generated_limit'],
        options.get('decoder_start_id'),
    )
    return dataclasses.replace(task, evaluators=(*task.evaluators, evaluator))
