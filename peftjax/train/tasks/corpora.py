"""Tasks of this project on installed data: film reviews, and grade-school mathematics."""

from collections.abc import Sequence

import numpy as np

import peftjax
from peftjax.train.data import corpora
from peftjax.train.data.packing import Row
from peftjax.train.settings import Settings
from peftjax.train.task import Batch, Forward, Task, Totals
from peftjax.train.tasks import base
from peftjax.train.tasks.classify import class_answer, class_outputs
from peftjax.train.tasks.generated import generation_options
from peftjax.train.tasks.writing import Prompts, decoder_task, with_generation, writer_of


def film_reviews(settings: Settings, model: peftjax.Model) -> Task:
    """Is a sentence from a favourable review? Films of one split are in no other.

    A row: input_ids, segment_ids int32 [T], cut at the greatest length; targets int32 []; weights
    float32 [].

    Options: longest leaves out sentences of more tokens (0 leaves out none); train, validation and
    test are the numbers of sentences drawn from each split (0 takes all). The run's seed decides
    those of train; the others are always the same.
    """
    options = base.options_of(settings, longest=0, train=0, validation=0, test=0)
    data, tokenizer = settings.data, base.needed(model, settings)
    longest = max(data.lengths, default=base.most_tokens(model))

    def tokens(ids: Sequence[int]) -> Row:
        kept = np.asarray(ids[:longest], np.int32)
        return {'input_ids': kept, 'segment_ids': np.ones_like(kept)}

    def rows(name: str, reviews: Sequence[corpora.Review]) -> list[Row]:
        encoded = [(tokenizer.encode(each.text), each) for each in base.limited(reviews, data)]
        most = options['longest'] or max(len(ids) for ids, _ in encoded)
        kept = [(ids, review) for ids, review in encoded if len(ids) <= most]
        count, seed = options[name], settings.seed if name == 'train' else 0
        kept = corpora.draw(kept, count, seed) if count else kept
        return [
            {**tokens(ids), 'targets': np.int32(review.label), 'weights': np.float32(1)}
            for ids, review in kept
        ]

    def totals(forward: Forward, batch: Batch) -> Totals:
        return base.weighted_totals(forward(base.encoder_inputs(batch)), batch)

    splits: base.Splits = {}
    if data.source:
        reviews = corpora.split_by_film(corpora.read_reviews(base.path_of(data.source)))
        splits = {name: rows(name, split) for name, split in reviews.items()}
    return Task(
        splits=splits,
        totals=totals,
        outputs=class_outputs,
        best='-loss',
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        lengths=base.lengths_of(settings, model, base.sizes_of(splits)),
        row=lambda record: tokens(tokenizer.encode(base.text_of(record, 'text'))),
        answer=class_answer(settings),
        classes=data.labels,
    )


def gsm8k(settings: Settings, model: peftjax.Model) -> Task:
    """Word problems answered step by step, in the chat format of SmolLM2-Instruct.

    The loss covers the answer and the end-of-turn token. Rows are `packing.chat_row`s; with
    `data.packing`, several share a row of the greatest length. Longer problems are cut there.

    Options: as for `peftjax.train.tasks.writing.instructions`; `generated` may name 'last_number',
    the share of problems whose final number is right.
    """
    data, tokenizer = settings.data, base.needed(model, settings)
    longest = max(data.lengths, default=base.most_tokens(model))

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def prompt(question: str) -> list[int]:
        return ids(f'<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n')

    rows = base.ChatRows(longest)
    splits: dict[str, list[Row | None]] = {}
    prompts: Prompts = {}
    if data.source:
        problems = corpora.split_problems(corpora.read_problems(base.path_of(data.source)))
        splits = {
            name: [
                rows.row(prompt(each.question), ids(f'{each.answer}<|im_end|>'))
                for each in base.limited(split, data)
            ]
            for name, split in problems.items()
        }
        prompts = {
            name: [(prompt(each.question), [each.answer]) for each in base.limited(split, data)]
            for name, split in problems.items()
        }
    options = base.options_of(settings, label_smoothing=0.0, metrics=(), **generation_options())
    task = decoder_task(settings, model, splits, rows, options)
    return with_generation(
        task,
        writer_of(model, tokenizer, options),
        lambda record: prompt(base.text_of(record, 'question')),
        prompts,
        options,
    )
