"""Log-likelihoods and answers of a decoder, in batches of a few static shapes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import peftjax

_SHORTEST = 32


class Piece(NamedTuple):
    """Tokens to score.

    Attributes:
        context: tokens before the continuation, at least one.
        continuation: tokens whose probability is computed.
    """

    context: Sequence[int]
    continuation: Sequence[int]


class Scored(NamedTuple):
    """The log-likelihood of a continuation, and whether all its tokens are the likeliest."""

    total: float
    greedy: bool


class Scorer:
    """Scores tokens and writes answers with a decoder and its adapter.

    Rows are padded to the next power of two from 32 on, or to `length`, and batches are filled up,
    so that few programs are compiled.

    Args:
        model: a decoder with the roles `token_ids`, `mask` and `targets`, such as those of
            `peftjax.load`.
        transform, adapter, frozen: of the method.
        length: tokens in the longest row, context and continuation together.
        batch_size: rows in a batch.

    Raises:
        ValueError: the model lacks a role or has an encoder; length is below 2, or batch_size
            below 1.
    """

    def __init__(
        self,
        model: peftjax.Model,
        transform: peftjax.PeftTransform,
        adapter: Any,
        frozen: peftjax.Frozen,
        *,
        length: int,
        batch_size: int,
    ):
        roles = model.roles or peftjax.Roles()
        if not (roles.token_ids and roles.targets and roles.mask) or roles.decoder_ids:
            raise ValueError(
                'lm-eval scores decoders: the model needs the roles token_ids, mask and targets, '
                f'and has {", ".join(roles.arguments) or "none"}'
            )
        if length < 2 or batch_size < 1:
            raise ValueError(
                f'length {length} and batch size {batch_size} must be at least 2 and 1'
            )
        self.length, self._rows, self._roles = length, batch_size, roles
        self._values = adapter, frozen
        predict = peftjax.adapt(model, transform)

        @jax.jit
        def scores(
            adapter: Any, frozen: peftjax.Frozen, inputs: dict[str, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            found: peftjax.TokenScores = predict(adapter, frozen, **inputs)
            right = found.correct | ~found.counted
            return -found.losses.sum(axis=1, dtype=jnp.float32), right.all(axis=1)

        self._scores = scores
        self._write = peftjax.generator(model, transform)

    def score(self, pieces: Sequence[Piece]) -> list[Scored]:
        """The log-likelihood of each continuation, in nats.

        If a row is too long, the front of its context is cut off. The last token predicts nothing,
        so context and continuation may have one token more than `length`.

        Raises:
            ValueError: a continuation is longer than a row.
        """
        longest = max((len(each.continuation) for each in pieces), default=0)
        if longest > self.length:
            raise ValueError(
                f'a continuation has {longest} tokens, a row only {self.length}; write a greater '
                'length'
            )
        rows = [[*each.context, *each.continuation][-(self.length + 1) :] for each in pieces]
        found: dict[int, Scored] = {}
        for chosen, width in self._batches([len(row) - 1 for row in rows]):
            ids = np.zeros((self._rows, width), np.int32)
            mask, targets = np.zeros_like(ids), np.full_like(ids, -100)
            mask[:, 0] = 1  # A row of padding alone has no softmax.
            for place, i in enumerate(chosen):
                row, count = rows[i], len(pieces[i].continuation)
                end = len(row) - 1
                ids[place, :end], mask[place, :end] = row[:-1], 1
                targets[place, end - count : end] = row[len(row) - count :]
            inputs = {
                self._roles.token_ids: jnp.asarray(ids),
                self._roles.mask: jnp.asarray(mask),
                self._roles.targets: jnp.asarray(targets),
            }
            totals, greedy = jax.device_get(self._scores(*self._values, inputs))
            for place, i in enumerate(chosen):
                found[i] = Scored(float(totals[place]), bool(greedy[place]))
        return [found[i] for i in range(len(pieces))]

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        count: int,
        ends: Sequence[int],
        sampling: peftjax.Sampling,
        key: jax.Array,
    ) -> list[list[int]]:
        """The tokens that continue each prompt, at most `count`, up to the first of `ends`.

        If a prompt is too long, its front is cut off.

        Raises:
            ValueError: `count` leaves no place for a prompt in a row.
        """
        if count >= self.length:
            raise ValueError(
                f'{count} new tokens leave no place for a prompt in a row of {self.length}; write '
                'fewer, or a greater length'
            )
        rows = [list(each)[-(self.length - count) :] for each in prompts]
        found: dict[int, list[int]] = {}
        for chosen, width in self._batches([len(row) for row in rows]):
            ids = np.zeros((self._rows, min(width, self.length - count)), np.int32)
            mask = np.zeros_like(ids)
            mask[:, -1] = 1
            for place, i in enumerate(chosen):
                ids[place, -len(rows[i]) :], mask[place, -len(rows[i]) :] = rows[i], 1
            key, drawn = jax.random.split(key)
            tokens = self._write(
                *self._values,
                jnp.asarray(ids),
                jnp.asarray(mask),
                max_new_tokens=count,
                eos_token_id=list(ends) or None,
                sampling=sampling,
                key=drawn,
            ).tolist()
            for place, i in enumerate(chosen):
                found[i] = until_end(tokens[place], ends)
        return [found[i] for i in range(len(prompts))]

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """The numbers of the rows in each batch, longest first, and the length they share."""
        order = np.argsort(-np.asarray(lengths, int), kind='stable').tolist()
        for start in range(0, len(order), self._rows):
            chosen = order[start : start + self._rows]
            width = _SHORTEST
            while width < lengths[chosen[0]]:
                width *= 2
            yield chosen, min(width, self.length)


def until_end(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the first end token.

    Example:
        >>> until_end([5, 6, 2, 2], [2, 3])
        [5, 6]
    """
    places = [place for place, token in enumerate(tokens) if token in ends]
    return list(tokens[: places[0]] if places else tokens)
