"""Scores of texts that the model writes, inside of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.train.metrics.texts import TEXT_METRICS
from peftjax.train.settings import SettingsError
from peftjax.train.task import Trained

_BATCH = 16  # prompts that are read at a time


def generation_options() -> dict[str, Any]:
    """The options of tasks that can write: which scores, of how many prompts, how long."""
    return {'generated': (), 'generated_limit': 64, 'max_new_tokens': 128}


class Generated:
    """`Evaluator`: the model's own texts, greedily written, beside the answers of the data.

    Prompts of a batch are padded to one of few lengths, so that few programs are compiled.

    Args:
        prompts: of each split, the tokens of prompts and the texts of their answers.
        tokenizer: reads what is written.
        metrics: names in `peftjax.train.metrics.texts.TEXT_METRICS`.
        max_new_tokens: of a text. limit: of prompts of a split, the first ones; 0 takes all.
        start: what an encoder's decoder begins with; None for a decoder alone.

    Raises:
        SettingsError: a metric that there is not.
    """

    def __init__(
        self,
        prompts: Mapping[str, Sequence[tuple[list[int], str]]],
        tokenizer: peftjax.Tokenizer,
        metrics: Sequence[str],
        max_new_tokens: int,
        limit: int,
        start: int | None = None,
    ):
        for name in metrics:
            if name not in TEXT_METRICS:
                raise SettingsError(
                    f'data.options.generated names {name!r}; there are {", ".join(TEXT_METRICS)}'
                )
        self._prompts, self._tokenizer, self._metrics = prompts, tokenizer, tuple(metrics)
        self._new, self._limit, self._start = max_new_tokens, limit, start
        self._generators: dict[int, Any] = {}

    def __call__(self, trained: Trained, split: str) -> Mapping[str, float]:
        """The scores of a split, by name."""
        pairs = list(self._prompts.get(split, ()))
        pairs = pairs[: self._limit] if self._limit else pairs
        if not pairs:
            return {}
        texts = self.texts(trained, [ids for ids, _ in pairs])
        answers = [self._plain(answer) for _, answer in pairs]
        return {name: TEXT_METRICS[name](texts, answers) for name in self._metrics}

    def texts(self, trained: Trained, prompts: Sequence[Sequence[int]]) -> list[str]:
        """What the model writes behind each prompt."""
        # The model of one run, or of each run of a sweep, is traced once.
        key = id(trained.transform)
        if key not in self._generators:
            self._generators[key] = peftjax.generator(trained.model, trained.transform)
        generate, found = self._generators[key], []
        eos, pad = self._tokenizer.eos_id, self._tokenizer.eos_id or 0
        for first in range(0, len(prompts), _BATCH):
            chosen = prompts[first : first + _BATCH]
            filled = [*chosen, *[chosen[-1]] * (_BATCH - len(chosen))]
            length = -(-max(map(len, filled)) // 64) * 64
            ids, mask = _padded(filled, length, pad, left=self._start is None)
            written = generate(
                trained.adapter,
                trained.frozen,
                jnp.asarray(ids),
                jnp.asarray(mask),
                max_new_tokens=self._new,
                eos_token_id=eos,
                pad_token_id=pad,
                **({} if self._start is None else {'start_token_id': self._start}),
            )
            found += [self._tokenizer.decode(row) for row in np.asarray(written)[: len(chosen)]]
        return found

    def _plain(self, answer: str) -> str:
        """An answer as the model's text reads: without special tokens."""
        ids = self._tokenizer.encode(answer, add_special_tokens=False)
        return self._tokenizer.decode(ids)


def _padded(
    prompts: Sequence[Sequence[int]], length: int, pad: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [B, length] and which of them are real, bool [B, length]."""
    ids = np.full((len(prompts), length), pad, np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        where = slice(length - len(prompt), None) if left else slice(len(prompt))
        ids[row, where], mask[row, where] = prompt, True
    return ids, mask
