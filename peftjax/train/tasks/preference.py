"""Preferences: pairs of a chosen and a rejected answer, or single answers that are good or bad."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import peftjax
from peftjax.train.data.packing import Row, chat_row, trains
from peftjax.train.data.tables import Record, read_splits
from peftjax.train.losses import preference as losses
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.task import Batch, Forward, Task, Totals
from peftjax.train.tasks import base, sides
from peftjax.train.tasks.judged import Judged, truth, with_others, written

_ARRAYS = ('input_ids', 'targets', 'segment_ids')
_OPTIONS: Mapping[str, Mapping[str, float]] = {
    'dpo': {'beta': 0.1, 'label_smoothing': 0.0},
    'ipo': {'beta': 0.1},
    'orpo': {'beta': 0.1},
    'simpo': {'beta': 2.0, 'gamma': 1.0},
    'kto': {'beta': 0.1, 'desirable_weight': 1.0, 'undesirable_weight': 1.0},
}
_MEANS = ('orpo', 'simpo')
"""Losses of mean log-probabilities, which need no reference."""


def preference(settings: Settings, model: peftjax.Model) -> Task:
    """Columns prompt, chosen and rejected: the model learns to prefer the chosen answer.

    An answer is a text, or a list of messages. A list that begins with the user holds the prompt
    too; the two lists may then differ only in their last message. The chat template writes the
    conversations, as for `instructions`, and the loss covers the last answer. The reference is the
    base model without the adapter: the same arrays, and no second copy.

    A row holds both sides (`sides.join_sides`): input_ids, targets (-100 outside of the answer),
    segment_ids int32 [T]; weights float32 []. Pairs with a side that has no token of its answer
    within the greatest length are left out, and counted in the notes.

    Options: loss: 'dpo' (the default), 'ipo', 'orpo', 'simpo' or 'kto'; their numbers are the
    arguments of the functions in `peftjax.train.losses.preference`: beta, label_smoothing of dpo,
    gamma of simpo, desirable_weight and undesirable_weight of kto.

    Scores: accuracy, the share of pairs whose chosen answer has the greater reward (a tie counts
    half); margin, the mean difference of the rewards. The reward is beta times the log-ratio to the
    reference, for orpo and simpo beta times the mean log-probability. With kto each pair is two
    single answers, scored as in `unpaired_preference`.

    Raises:
        SettingsError: no such loss or option; no chat template; nothing left to train on.
        ValueError: a pair whose conversations differ before the last message.
    """
    loss, options = _options(settings, 'dpo')

    def judged(records: Sequence[Record]) -> list[tuple[Judged, ...]]:
        texts = written(settings, model, records, ('chosen', 'rejected'))
        pairs: list[tuple[Judged, ...]] = []
        for record, chosen, rejected in zip(records, texts[0], texts[1], strict=True):
            if chosen[0] != rejected[0]:
                raise ValueError(
                    'the conversations of a pair may differ only in their last message: '
                    f'{str(record)[:120]}'
                )
            pairs.append((Judged(*chosen, True), Judged(*rejected, False)))
        return pairs

    if loss == 'kto':

        def answers(records: Sequence[Record]) -> list[tuple[Judged, ...]]:
            pairs = judged(records)
            # All chosen ones first, so that neighbours have different prompts.
            return with_others(settings, [pair[i] for i in (0, 1) for pair in pairs])

        return _task(settings, model, ('chosen', 'rejected'), answers, _kto_totals(options))
    totals = _pair_totals(loss, options)
    return _task(settings, model, ('chosen', 'rejected'), judged, totals, loss not in _MEANS)


def unpaired_preference(settings: Settings, model: peftjax.Model) -> Task:
    """Columns prompt, completion and label: single answers that are good (true) or bad, by KTO.

    Rows, templates and lengths are those of `preference`. The second side is the prompt with the
    answer to another prompt; KTO uses it to measure how far the model is from the reference. It
    measures this for each batch, so batches need more than a few rows.

    Options: beta, desirable_weight, undesirable_weight.

    Scores: accuracy, the share of good answers whose reward is above the reference point and of bad
    ones whose reward is below it; margin, how far the rewards are on the right side of it.

    Raises:
        SettingsError: all prompts are the same; the others are those of `preference`.
        ValueError: a label is neither true nor false.
    """
    _, options = _options(settings, 'kto', fixed=True)

    def answers(records: Sequence[Record]) -> list[tuple[Judged, ...]]:
        (texts,) = written(settings, model, records, ('completion',))
        labels = [truth(record[settings.data.columns['label']]) for record in records]
        found = [Judged(*each, label) for each, label in zip(texts, labels, strict=True)]
        return with_others(settings, found)

    return _task(settings, model, ('completion', 'label'), answers, _kto_totals(options))


def _options(settings: Settings, usual: str, fixed: bool = False) -> tuple[str, dict[str, Any]]:
    """The loss and its numbers."""
    loss = usual if fixed else settings.data.options.get('loss', usual)
    if loss not in _OPTIONS:
        near = difflib.get_close_matches(str(loss), _OPTIONS, n=3, cutoff=0)
        raise SettingsError(f'no loss data.options.loss={loss!r}; near names: {near}')
    names = {} if fixed else {'loss': usual}
    options = base.options_of(settings, **names, **_OPTIONS[loss])
    numbers = {name: value for name, value in options.items() if name != 'loss'}
    for name, value in numbers.items():
        fits = 0.0 <= value < 0.5 if name == 'label_smoothing' else value >= 0.0
        if not fits or (name == 'beta' and value == 0.0):
            allowed = {'label_smoothing': 'from 0 to below 0.5', 'beta': 'above 0'}
            raise SettingsError(
                f'data.options.{name} is {value}; write a number {allowed.get(name, "from 0 on")}'
            )
    return loss, numbers


def _task(
    settings: Settings,
    model: peftjax.Model,
    roles: Sequence[str],
    answers: Callable[[Sequence[Record]], list[tuple[Judged, ...]]],
    totals: Callable[[Forward, Batch], Totals],
    needs_reference: bool = True,
) -> Task:
    data, tokenizer = settings.data, base.needed(model, settings)
    longest = max(data.lengths, default=base.most_tokens(model))
    splits: base.Splits = {}
    count = cut = 0
    if data.source:
        optional = [data.columns[name] for name in ('prompt',) if name in data.columns]
        columns = [data.columns[name] for name in roles]
        for name, records in read_splits(data, columns, optional).items():
            made = [
                [(one.desirable, *_side(tokenizer, one, longest)) for one in each]
                for each in answers(base.limited(records, data))
            ]
            count += len(made)
            cut += sum(any(was_cut for _, _, was_cut in each) for each in made)
            kept = [(each[0][0], [side for _, side, _ in each if side]) for each in made]
            splits[name] = [
                {
                    **sides.join_sides(both),
                    'weights': np.float32(1),
                    'desirable': np.bool_(desirable),
                }
                for each, (desirable, both) in zip(made, kept, strict=True)
                if len(both) == len(each)
            ]
    if missing := [name for name, rows in splits.items() if not rows]:
        raise SettingsError(
            f'{data.source}: no example of {missing[0]} has a token of its answer within '
            f'{longest} tokens; write a greater --data.lengths'
        )
    out = count - sum(map(len, splits.values()))
    notes = [f'{cut:,} of {count:,} examples were cut at {longest} tokens'] if cut else []
    if out:
        notes.append(f'{out:,} of {count:,} examples were left out: nothing of an answer was left')
    return Task(
        splits=splits,
        totals=totals,
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        lengths=base.lengths_of(settings, model, base.sizes_of(splits)),
        needs_reference=needs_reference,
        notes=tuple(notes),
    )


def _side(tokenizer: peftjax.Tokenizer, judged: Judged, longest: int) -> tuple[Row | None, bool]:
    """The arrays of a prompt with its answer, and whether some of it was cut.

    The arrays are None if nothing of the answer is left.
    """
    prompt, answer = (
        tokenizer.encode(text, add_special_tokens=False) for text in (judged.prompt, judged.answer)
    )
    cut = len(prompt) + len(answer) - 1 > longest
    if not trains(prompt, answer, longest):
        return None, cut
    row = chat_row(prompt, answer, longest)
    targets = np.where(row['weights'] > 0, row['targets'], -100).astype(np.int32)
    return {**{name: row[name] for name in _ARRAYS}, 'targets': targets}, cut


def _log_probs(
    run: Callable[[Mapping[str, Any]], Any], inputs: dict[str, Any], mean: bool = False
) -> jax.Array:
    """Log-probabilities of the answers of rows, float32 [rows]; padding does not count."""
    given = base.decoder_inputs(inputs)
    return losses.answer_log_probs(run(given), given['targets'] >= 0, mean=mean)


def _after(
    reference: Float[jax.Array, ' B'], inputs: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The inputs, made to depend on the reference, so that a program computes the reference first.

    Otherwise the compiler may compute the reference while activations are kept for the gradient,
    and hold the logits of both. XLA drops an optimization barrier before it schedules, but it
    cannot know that no reference is NaN. Rows with such a reference get zeros; their loss is NaN
    in any case.
    """
    lost = jnp.isnan(reference)[:, None]
    return {name: jnp.where(lost, jnp.zeros_like(each), each) for name, each in inputs.items()}


def _pair_totals(loss: str, options: Mapping[str, float]) -> Callable[[Forward, Batch], Totals]:
    def totals(forward: Forward, batch: Batch) -> Totals:
        inputs = sides.stack_sides(batch, 2, _ARRAYS)
        if loss in _MEANS:
            chosen, rejected = jnp.split(_log_probs(forward, inputs, mean=True), 2)
            function = losses.orpo_loss if loss == 'orpo' else losses.simpo_loss
            values, margin = function(chosen, rejected, **options), chosen - rejected
        else:
            reference = _log_probs(forward.reference, inputs)
            chosen_0, rejected_0 = jnp.split(reference, 2)
            chosen, rejected = jnp.split(_log_probs(forward, _after(reference, inputs)), 2)
            function = losses.dpo_loss if loss == 'dpo' else losses.ipo_loss
            values = function(chosen, rejected, chosen_0, rejected_0, **options)
            margin = losses.log_ratio_margin(chosen, rejected, chosen_0, rejected_0)
        margin = options['beta'] * margin
        accuracy = 0.5 * (1.0 + jnp.sign(margin))
        values = {'loss': values, 'accuracy': accuracy, 'margin': margin}
        return sides.weighted(values, batch['weights'])

    return totals


def _kto_totals(options: Mapping[str, float]) -> Callable[[Forward, Batch], Totals]:
    def totals(forward: Forward, batch: Batch) -> Totals:
        own, others = (sides.one_side(batch, i, _ARRAYS) for i in (0, 1))
        reference = _log_probs(forward.reference, sides.stack_sides(batch, 2, _ARRAYS))
        reference_own, reference_others = jnp.split(reference, 2)
        ratios = _log_probs(forward, _after(reference_own, own)) - reference_own
        # A separate call without a gradient, of which no activation is kept.
        far = jax.lax.stop_gradient(_log_probs(forward, others)) - reference_others
        point = losses.kto_reference_point(far, batch['weights'])
        values = losses.kto_loss(ratios, batch['desirable'], point, **options)
        gain = options['beta'] * (ratios - point)
        margin = jnp.where(batch['desirable'], gain, -gain)
        accuracy = 0.5 * (1.0 + jnp.sign(margin))
        values = {'loss': values, 'accuracy': accuracy, 'margin': margin}
        return sides.weighted(values, batch['weights'])

    return totals
