"""Texts that the model writes: predictions, and their scores during training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.train.metrics.texts import TEXT_METRICS
from peftjax.train.settings import SettingsError
from peftjax.train.task import Trained

_BATCH = 16  # prompts that are read at a time
_STEP = 64  # prompts are padded to multiples of this


def generation_options() -> dict[str, Any]:
    """The options of tasks that generate: the scores, the number of prompts, the longest text."""
    return {'generated': (), 'generated_limit': 64, 'max_new_tokens': 128}


class Writer:
    """Continues prompts, greedily, until the end token of the tokenizer.

    Prompts of a batch are padded to one of few lengths, so that few programs are compiled.

    Args:
        tokenizer: turns the tokens into text.
        max_new_tokens: greatest number of tokens of a text.
        positions: positions that the model has for a prompt and its text; None is no limit.
        start: the first token of a decoder with an encoder; None for a decoder alone.
    """

    def __init__(
        self,
        tokenizer: peftjax.Tokenizer,
        max_new_tokens: int,
        positions: int | None = None,
        start: int | None = None,
    ):
        self._tokenizer, self._new, self._start = tokenizer, max_new_tokens, start
        self._longest = None if positions is None else positions - max_new_tokens
        # The generator keeps its transform alive, so that no other one has the same id.
        self._generators: dict[int, Any] = {}

    def fits(self, prompt: Sequence[int]) -> bool:
        """Whether the model has a position for each token of the prompt and of its text."""
        return self._longest is None or len(prompt) <= self._longest

    def write(self, trained: Trained, prompts: Sequence[Sequence[int]]) -> list[str]:
        """The continuation of each prompt, without special tokens.

        Raises:
            ValueError: a prompt without tokens, or one that leaves no room for its text.
        """
        for prompt in prompts:
            if not len(prompt) or not self.fits(prompt):
                raise ValueError(
                    f'a prompt has {len(prompt)} tokens; it needs at least one, and with '
                    f'{self._new} new tokens at most {self._longest}: write a smaller '
                    '--data.options.max_new_tokens'
                )
        key = id(trained.transform)
        if key not in self._generators:
            self._generators[key] = peftjax.generator(trained.model, trained.transform)
        found: list[str] = []
        for first in range(0, len(prompts), _BATCH):
            found += self._batch(self._generators[key], trained, prompts[first : first + _BATCH])
        return found

    def _batch(self, generate: Any, trained: Trained, prompts: Sequence[Any]) -> list[str]:
        eos = self._tokenizer.eos_id
        filled = [*prompts, *[prompts[-1]] * (_BATCH - len(prompts))]
        length = -(-max(map(len, filled)) // _STEP) * _STEP
        ids, mask = _padded(filled, length, eos or 0, left=self._start is None)
        written = generate(
            trained.adapter,
            trained.frozen,
            jnp.asarray(ids),
            jnp.asarray(mask),
            max_new_tokens=self._new,
            eos_token_id=eos,
            pad_token_id=eos or 0,
            **({} if self._start is None else {'start_token_id': self._start}),
        )
        return [
            self.plain(_ended(row, eos)) for row in np.asarray(written)[: len(prompts)].tolist()
        ]

    def plain(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special tokens."""
        return self._tokenizer.decode(ids).strip()

    def reference(self, answer: str) -> str:
        """An answer in the form of a text of the model: without special tokens."""
        return self.plain(self._tokenizer.encode(answer, add_special_tokens=False))

    def predictions(
        self, prompt: Callable[[Mapping[str, Any]], Sequence[int]]
    ) -> Callable[[Trained, Sequence[Mapping[str, Any]]], list[Mapping[str, Any]]]:
        """`Task.predict`, from a function from a record to the tokens of its prompt."""

        def predict(
            trained: Trained, records: Sequence[Mapping[str, Any]]
        ) -> list[Mapping[str, Any]]:
            texts = self.write(trained, [prompt(record) for record in records])
            return [{'text': text} for text in texts]

        return predict


class Generated:
    """`Evaluator`: compares texts of the model with the answers of the data.

    Args:
        prompts: for each split, the tokens of prompts, and the reference answers of each. Prompts
            for which the writer has no room are left out.
        writer: continues the prompts.
        metrics: names in `peftjax.train.metrics.texts.TEXT_METRICS`.
        limit: number of prompts of a split, from the first on; 0 takes all.

    Attributes:
        left_out: number of prompts without room.

    Raises:
        SettingsError: a metric is unknown.
    """

    def __init__(
        self,
        prompts: Mapping[str, Sequence[tuple[list[int], Sequence[str]]]],
        writer: Writer,
        metrics: Sequence[str],
        limit: int,
    ):
        for name in metrics:
            if name not in TEXT_METRICS:
                raise SettingsError(
                    f'data.options.generated names {name!r}; write some of '
                    f'{", ".join(TEXT_METRICS)}'
                )
        fitting = {
            split: [pair for pair in pairs if writer.fits(pair[0])]
            for split, pairs in prompts.items()
        }
        self.left_out = sum(map(len, prompts.values())) - sum(map(len, fitting.values()))
        self._prompts = {
            split: pairs[:limit] if limit else pairs for split, pairs in fitting.items()
        }
        self._writer, self._metrics = writer, tuple(metrics)

    def __call__(self, trained: Trained, split: str) -> Mapping[str, float]:
        """The scores of a split, by name; empty if it has no prompts."""
        pairs = self._prompts.get(split, ())
        if not pairs:
            return {}
        found = self._writer.write(trained, [ids for ids, _ in pairs])
        answers = [[self._writer.reference(each) for each in texts] for _, texts in pairs]
        return {name: TEXT_METRICS[name](found, answers) for name in self._metrics}


def _ended(ids: list[int], eos: int | None) -> list[int]:
    """The tokens before the end token."""
    return ids[: ids.index(eos)] if eos in ids else ids


def _padded(
    prompts: Sequence[Sequence[int]], length: int, pad: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [B, length], and a mask of the real ones, bool [B, length]."""
    ids = np.full((len(prompts), length), pad, np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        where = slice(length - len(prompt), None) if left else slice(len(prompt))
        ids[row, where], mask[row, where] = prompt, True
    return ids, mask
