"""Shared by tasks: cross-entropy totals, the inputs of model families, lengths and tokenizers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

import peftjax
from peftjax.interop.checkpoints.tokenizer import encoded
from peftjax.train.data.packing import Row, chat_row, trains
from peftjax.train.data.tables import Record, read_splits
from peftjax.train.settings import DataSettings, Settings, SettingsError
from peftjax.train.task import Batch, Totals

Splits = dict[str, Sequence[Row]]
_LONGEST = 1024  # tokens of the greatest length that is found in data


def weighted_totals(
    result: jax.Array | peftjax.TokenScores, batch: Batch, smoothing: float = 0.0
) -> Totals:
    r"""Totals of cross-entropy and of right answers, weighted.

    With label smoothing :math:`\epsilon` over `K` classes the target distribution is
    :math:`(1 - \epsilon)` on the answer plus :math:`\epsilon / K` on every class.

    Args:
        result: logits [..., classes], which are converted to float32; or the scores that a decoder
            gives its targets.
        batch: 'targets' int [...] and 'weights' float [...]; a target below 0 does not count.
        smoothing: epsilon, at least 0 and below 1; with logits only.

    Raises:
        ValueError: smoothing of a decoder's scores, which have no logits.

    Source: label smoothing, Szegedy et al. 2016 (arXiv:1512.00567), section 7.

    Example:
        >>> batch = {'targets': jnp.asarray([1, -100]), 'weights': jnp.ones(2)}
        >>> totals = weighted_totals(jnp.asarray([[0.0, 2.0], [0.0, 0.0]]), batch)
        >>> {name: round(float(total), 3) for name, total in totals.items()}
        {'loss': 0.127, 'accuracy': 1.0, 'weights': 1.0}
    """
    counted = jnp.asarray(batch['targets']) >= 0
    if not isinstance(result, peftjax.TokenScores):
        logits = result.astype(jnp.float32)
        labels = jnp.where(counted, batch['targets'], 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        if smoothing:
            uniform = -jax.nn.log_softmax(logits, axis=-1).mean(-1)
            losses = (1.0 - smoothing) * losses + smoothing * uniform
        right = jnp.argmax(logits, axis=-1) == batch['targets']
        result = peftjax.TokenScores(losses, right, counted)
    elif smoothing:
        raise ValueError('label smoothing needs logits; leave the targets out of the inputs')
    weights = jnp.where(counted, batch['weights'], 0.0)
    return {
        'loss': jnp.sum(result.losses * weights),
        'accuracy': jnp.sum(jnp.where(result.correct, weights, 0.0)),
        'weights': jnp.sum(weights),
    }


def encoder_inputs(batch: Batch) -> dict[str, Any]:
    """Tokens, a mask of the real ones, and for pairs the text that each token belongs to."""
    types = {name: batch[name] for name in ('token_type_ids',) if name in batch}
    return {'input_ids': batch['input_ids'], 'attention_mask': batch['segment_ids'] > 0, **types}


def decoder_inputs(batch: Batch) -> dict[str, Any]:
    """Tokens of one example in each row, a mask of the real ones, and the next token of each.

    There is a mask and no segments: methods with virtual tokens take masks and refuse segments.
    """
    mask = batch['segment_ids'] > 0
    return {
        'input_ids': batch['input_ids'],
        'attention_mask': mask,
        'targets': jnp.where(mask, batch['targets'], -100),
    }


def packed_inputs(batch: Batch) -> dict[str, Any]:
    """Tokens, and for each its example in the row, its place in the example, and the next token."""
    names = ('input_ids', 'segment_ids', 'position_ids', 'targets')
    return {name: batch[name] for name in names}


def decoder_inputs_of(settings: Settings) -> Callable[[Batch], dict[str, Any]]:
    """The inputs of a decoder for rows as the settings make them, packed or not."""
    return packed_inputs if settings.data.packing else decoder_inputs


def seq2seq_inputs(batch: Batch) -> dict[str, Any]:
    """Tokens of both sides, masks of the real ones, and the targets of the decoder."""
    return {
        **{name: batch[name] for name in ('input_ids', 'decoder_input_ids', 'targets')},
        'attention_mask': batch['segment_ids'] > 0,
        'decoder_attention_mask': batch['decoder_segment_ids'] > 0,
    }


def needed(model: peftjax.Model, settings: Settings) -> peftjax.Tokenizer:
    """The tokenizer of a checkpoint.

    Raises:
        SettingsError: the checkpoint has none.
    """
    if model.tokenizer is None:
        raise SettingsError(
            f'task {settings.task!r} reads text, and {settings.model.source} has no tokenizer.json'
        )
    return model.tokenizer


def most_tokens(model: peftjax.Model) -> int:
    """The longest row that a model takes, as far as its config tells; 1024 at most."""
    config = model.config
    most = getattr(config, 'max_position_embeddings', _LONGEST)
    # RoBERTa's positions begin behind that of padding.
    if type(config).__name__ == 'RobertaConfig':
        most -= config.pad_token_id + 1
    return min(most, _LONGEST)


def lengths_of(settings: Settings, model: peftjax.Model, sizes: Sequence[int]) -> tuple[int, ...]:
    """The lengths that batches are padded to: those of the settings, or some that fit the data.

    These are four at most: the quartiles and the maximum of the sizes, rounded up to multiples of
    8, but no more than the model takes.
    """
    if settings.data.lengths:
        return settings.data.lengths
    most = most_tokens(model)
    if not len(sizes):
        return (most,)
    quarters = np.quantile(np.asarray(sizes), (0.25, 0.5, 0.75, 1.0))
    rounded = (min(most, int(-(-each // 8) * 8)) for each in quarters)
    return tuple(sorted({max(8, each) for each in rounded}))


def sizes_of(splits: Splits) -> list[int]:
    """The number of tokens of each training row."""
    return [len(row['input_ids']) for row in splits.get('train', ())]


def read_rows(
    settings: Settings,
    columns: Sequence[str],
    row: Callable[[Record], Row | None],
) -> Splits:
    """The rows of each split; empty if the settings name no data, as for predictions.

    A record for which `row` returns None is left out.
    """
    if not settings.data.source:
        return {}
    table = read_splits(settings.data, list(dict.fromkeys(columns)))
    made = {
        name: [row(record) for record in limited(records, settings.data)]
        for name, records in table.items()
    }
    splits: Splits = {
        name: [each for each in rows if each is not None] for name, rows in made.items()
    }
    if empty := [name for name, rows in splits.items() if not rows]:
        raise SettingsError(f'{settings.data.source}: every example of {empty[0]} was left out')
    return splits


def limited(rows: Sequence[Any], data: DataSettings) -> Sequence[Any]:
    """The first rows, as many as the settings keep."""
    return rows[: data.limit] if data.limit else rows


def text_of(record: Mapping[str, Any], column: str) -> str:
    """A text of a record.

    Raises:
        ValueError: the column is missing or holds something else.
    """
    if column not in record:
        raise ValueError(f'a record has no {column!r}; it has {", ".join(map(str, record))}')
    text = record[column]
    if not isinstance(text, str):
        raise ValueError(f'column {column!r} holds {str(text)[:60]!r}, which is no text')
    return text


class Cutting:
    """A tokenizer that cuts texts at a length and counts them. Special tokens are kept.

    Attributes:
        seen, cut: number of texts (or pairs) that were encoded, and of those that were cut.
    """

    def __init__(self, tokenizer: peftjax.Tokenizer, longest: int):
        self._backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        self._backend.enable_truncation(longest)
        self._longest = longest
        self.seen = self.cut = 0

    def encode(self, text: str, pair: str | None = None) -> tokenizers.Encoding:
        """The tokens of a text, or of a pair of texts, of which the longer one is cut first."""
        return self._counted(encoded(self._backend, text, pair))

    def encode_words(self, words: Sequence[str]) -> tokenizers.Encoding:
        """The tokens of a text that is split into words already."""
        return self._counted(encoded(self._backend, list(words), is_pretokenized=True))

    def _counted(self, encoded: tokenizers.Encoding) -> tokenizers.Encoding:
        self.seen += 1
        self.cut += bool(encoded.overflowing)
        return encoded

    def notes(self) -> tuple[str, ...]:
        """Says how many texts were cut; empty if none was."""
        if not self.cut:
            return ()
        return (f'{self.cut:,} of {self.seen:,} texts were cut at {self._longest} tokens',)


def cutting(tokenizer: peftjax.Tokenizer, longest: int) -> Cutting:
    """A tokenizer that cuts at a length, keeps its special tokens, and cuts longer texts first."""
    return Cutting(tokenizer, longest)


class ChatRows:
    """Makes `packing.chat_row`s and counts those that were cut.

    Attributes:
        longest: the number of tokens at which rows are cut.
        made: number of examples.
        cut: number of examples that were cut.
        lost: number of examples without a token of their answer, cut or not; they give no rows.
    """

    def __init__(self, longest: int):
        self.longest = longest
        self.made = self.cut = self.lost = 0

    def row(self, prompt: Sequence[int], answer: Sequence[int]) -> Row | None:
        """A row of a prompt and its answer; None if nothing of the answer is left."""
        self.made += 1
        self.cut += len(prompt) + len(answer) - 1 > self.longest
        if not trains(prompt, answer, self.longest):
            self.lost += 1
            return None
        return chat_row(prompt, answer, self.longest)


def path_of(source: str) -> Path:
    """The path of a file: a local one, or 'package:name/file' in an installed package."""
    return peftjax.package_path(source) if source.startswith('package:') else Path(source)


def options_of(settings: Settings, **defaults: Any) -> dict[str, Any]:
    """The options of a task, each of the type of its default.

    Raises:
        SettingsError: an option that the task does not have, or of another type.

    Example:
        >>> settings = Settings(data=DataSettings(options={'label_smoothing': 0.1}))
        >>> options_of(settings, label_smoothing=0.0)
        {'label_smoothing': 0.1}
    """
    given = settings.data.options
    for name, value in given.items():
        if name not in defaults:
            raise SettingsError(
                f'no option data.options.{name} of task {settings.task!r}; it has '
                f'{", ".join(defaults) or "none"}'
            )
        default = defaults[name]
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        kinds = (list, tuple) if isinstance(default, tuple) else kinds
        if default is not None and not isinstance(value, kinds):
            raise SettingsError(f'data.options.{name} does not take {value!r}')
    return {**defaults, **given}
