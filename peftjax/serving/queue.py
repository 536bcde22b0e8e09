"""Continuous batching: requests of different lengths and adapters, in the rows of one batch."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, PRNGKeyArray

from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.core.roles import Roles
from peftjax.core.rules import ROOT, CallRule
from peftjax.generation.generate import check_decoder
from peftjax.generation.loop import positions_of
from peftjax.generation.prompts import pad_left
from peftjax.generation.sampling import Sampling
from peftjax.serving.bank import Bank
from peftjax.serving.generate import RowCalls, rules_of
from peftjax.serving.predict import checked, members_of, shapes_alone


class Request(NamedTuple):
    """A prompt, and the adapter that answers it.

    Attributes:
        prompt: token ids, at least one.
        slot: of the bank; 0 for the base.
        max_new_tokens: at least 1.
    """

    prompt: Sequence[int]
    slot: int
    max_new_tokens: int

    @property
    def places(self) -> int:
        """Tokens of the padded prompt and of the answer: what `max_length` must hold of them."""
        return _padded(len(self.prompt)) + self.max_new_tokens


class Answer(NamedTuple):
    """What was written for a request.

    Attributes:
        number: of the request, from 0.
        tokens: int32 [at most max_new_tokens], up to the end token and with it.
    """

    number: int
    tokens: np.ndarray


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['slots', 'numbers', 'limits', 'counts', 'last', 'done', 'written', 'cache'],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of the batch.

    Attributes:
        slots: int32 [rows], of the bank.
        numbers: int32 [rows], of the requests.
        limits, counts: int32 [rows], tokens to write and written.
        last: int32 [rows], the token written last.
        done: bool [rows]; a row without a request is done too.
        written: int32 [rows, most].
        cache: a tree, rows on the axes that the model has them on, and in front where it has none.
    """

    slots: jax.Array
    numbers: jax.Array
    limits: jax.Array
    counts: jax.Array
    last: jax.Array
    done: jax.Array
    written: jax.Array
    cache: Any


def server(
    model: Model,
    *,
    rows: int,
    max_length: int,
    eos_token_id: int | Sequence[int] | None = None,
    sampling: Sampling | None = None,
    key: PRNGKeyArray | None = None,
) -> Callable[[Bank, Frozen, Iterable[Request]], Iterator[Answer]]:
    """`serve(bank, frozen, requests)`: answers as they are finished, with continuous batching.

    A batch has a fixed number of rows. A row whose answer is finished takes the next request, while
    the others go on. Each row has its adapter, its prompt and its place in the cache, so that what
    is written does not depend on what else is in the batch. Programs are compiled for prompts
    of 16, 32, 64, ... tokens, and for 1, 2, 4, ... requests that begin at once.

    Args:
        model: a decoder of `peftjax.load`, or one with the roles that `peftjax.generator` needs.
        rows: how many requests are answered at a time.
        max_length: tokens of a prompt and its answer together, the virtual ones among them, at
            most, where a prompt counts with the length that it is padded to. The cache has so
            many slots for each row.
        eos_token_id: an answer ends with it (one id, or several).
        sampling: see `peftjax.Sampling`; greedy by default.
        key: for draws, of each request its own.

    Returns:
        An iterator of `Answer`. Requests are taken from their iterable when rows are free.

    Raises:
        ValueError: no row; a model without a cache; a method that reads whole examples; when it is
            taken, a request with an empty slot, no prompt, no new token, or more than `max_length`.

    Example:
        >>> from peftjax.models.llama import Llama
        >>> from peftjax.models.llama_config import LlamaConfig
        >>> module = Llama(LlamaConfig(50, 16, 32, 2, 4, 2, 4))
        >>> ids = jnp.ones((1, 4), jnp.int32)
        >>> params = module.init(jax.random.key(0), input_ids=ids)['params']
        >>> model = peftjax.wrap(module, params, {'input_ids': ids})
        >>> tx = peftjax.lora(rank=2, targets=r'.*q_proj.*')
        >>> bank, frozen = peftjax.serving.bank(model, [(tx, *tx.init(jax.random.key(0), model))])
        >>> requests = [peftjax.serving.Request([5, 6], slot, 3) for slot in (1, 0, 1)]
        >>> serve = peftjax.serving.server(model, rows=2, max_length=32)
        >>> sorted(answer.number for answer in serve(bank, frozen, requests))
        [0, 1, 2]

    Source: Yu et al., Orca, 2022 (OSDI), section 3.1: scheduling by iterations.
    """
    if rows < 1:
        raise ValueError(f'rows must be at least 1, got {rows}')
    sampling = Sampling() if sampling is None else sampling
    check_decoder(model, sampling, key)
    if (model.roles or Roles()).decoder_ids:
        raise ValueError(
            'an encoder reads each prompt whole, and a server exchanges the rows of a decoder; '
            'write peftjax.serving.generator for this model'
        )
    ends = () if eos_token_id is None else tuple(np.atleast_1d(eos_token_id).tolist())
    key = jax.random.key(0) if key is None else key
    programs = _Programs(shapes_alone(model), rows, max_length, ends, sampling, key)

    def serve(bank: Bank, frozen: Frozen, requests: Iterable[Request]) -> Iterator[Answer]:
        rules = rules_of(bank)
        if any(getattr(rule, 'whole', False) for rule in rules.values()):
            raise ValueError(
                f'{bank.transform!r} reads whole examples, which a cache does not keep; write '
                'peftjax.serving.generator'
            )
        root = rules.get(ROOT)
        virtual = root.virtual_tokens if isinstance(root, CallRule) else 0
        return _serve(programs, bank, frozen, iter(requests), virtual)

    return serve


def _serve(
    programs: '_Programs', bank: Bank, frozen: Frozen, requests: Iterator[Request], virtual: int
) -> Iterator[Answer]:
    numbered, taken, state = enumerate(requests), dict[int, int](), None
    while True:
        free = [place for place in range(programs.rows) if place not in taken]
        coming = list(itertools.islice(numbered, len(free)))
        for length, group in programs.groups(bank, frozen, coming, virtual):
            places, free = free[: len(group)], free[len(group) :]
            state = programs.admit(bank, frozen, state, places, length, group)
            taken |= {place: number for place, (number, _) in zip(places, group, strict=True)}
        if state is None or not taken:
            return
        done = np.asarray(state.done)
        if not any(done[place] for place in taken):
            state = programs.advance(bank, frozen, state)
            done = np.asarray(state.done)
        counts, written = np.asarray(state.counts), np.asarray(state.written)
        for place in [place for place in taken if done[place]]:
            yield Answer(taken.pop(place), written[place, : counts[place]])


class _Programs:
    """The programs of a server: one that reads prompts, one that writes tokens."""

    def __init__(
        self,
        model: Model,
        rows: int,
        max_length: int,
        ends: tuple[int, ...],
        sampling: Sampling,
        key: PRNGKeyArray,
    ):
        self.rows = rows
        self._model, self._roles = model, model.roles or Roles()
        self._max_length, self._ends = max_length, ends
        self._sampling, self._key = sampling, key
        self._cache_axes: Any = None  # Known once a prompt was read.
        self._read = jax.jit(self._traced_read)
        self._exchange = jax.jit(self._traced_exchange)
        self._write = jax.jit(self._traced_write)

    def groups(
        self, bank: Bank, frozen: Frozen, coming: list[tuple[int, Request]], virtual: int
    ) -> list[tuple[int, list[tuple[int, Request]]]]:
        """Requests whose prompts are padded to one length: `(length, [(number, request)])`."""
        found: dict[int, list[tuple[int, Request]]] = {}
        for number, request in coming:
            length, count = _padded(len(request.prompt)), request.max_new_tokens
            if not len(request.prompt) or count < 1:
                raise ValueError(
                    f'request {number} has {len(request.prompt)} prompt tokens and max_new_tokens='
                    f'{count}; each is 1 at least'
                )
            if length + virtual + count > self._max_length:
                raise ValueError(
                    f'request {number} needs {length} places for its prompt, {virtual} for virtual '
                    f'tokens and {count} for its answer, and max_length is {self._max_length}'
                )
            checked(bank, np.array([request.slot]), frozen)
            found.setdefault(length, []).append((number, request))
        return list(found.items())

    def admit(
        self,
        bank: Bank,
        frozen: Frozen,
        state: _Rows | None,
        places: list[int],
        length: int,
        group: list[tuple[int, Request]],
    ) -> _Rows:
        """The rows, with new requests at `places` whose prompts have been read."""
        # A group of 3 is one of 4, whose last is there twice.
        more = (1 << (len(group) - 1).bit_length()) - len(group)
        places, group = places + places[-1:] * more, group + group[-1:] * more
        ids, mask = pad_left([request.prompt for _, request in group])
        before = ((0, 0), (length - ids.shape[1], 0))
        requests = [(number, request.slot, request.max_new_tokens) for number, request in group]
        numbers, slots, limits = np.array(requests, np.int32).T
        read = np.pad(ids, before), np.pad(mask, before)
        fresh: _Rows = self._read(bank, frozen, slots, numbers, limits, *read)
        if state is None:
            rows = np.zeros(self.rows, np.int32)
            empty: _Rows = jax.tree.map(
                lambda axis, leaf: jnp.take(leaf, rows, axis), self._row_axes(), fresh
            )
            state = dataclasses.replace(empty, done=jnp.ones(self.rows, bool))
        return self._exchange(state, np.array(places, np.int32), fresh)

    def advance(self, bank: Bank, frozen: Frozen, state: _Rows) -> _Rows:
        """The rows after as many tokens as it takes until another row is done."""
        return self._write(bank, frozen, state)

    def _row_axes(self) -> _Rows:
        cache = jax.tree.map(
            lambda axis: axis or 0, self._cache_axes, is_leaf=lambda axis: axis is None
        )
        return _Rows(0, 0, 0, 0, 0, 0, 0, cache)  # pyright: ignore[reportArgumentType] (axes)

    def _calls(self, bank: Bank, frozen: Frozen, slots: jax.Array) -> RowCalls:
        members = members_of(self._model, bank, slots, frozen.params)
        return RowCalls(
            self._model, bank, members, frozen.params, cache_axes=self._cache_axes, apart=True
        )

    def _traced_read(
        self,
        bank: Bank,
        frozen: Frozen,
        slots: Int32[jax.Array, ' n'],
        numbers: Int32[jax.Array, ' n'],
        limits: Int32[jax.Array, ' n'],
        ids: Int32[jax.Array, 'n L'],
        mask: Int32[jax.Array, 'n L'],
    ) -> _Rows:
        roles, call = self._roles, self._calls(bank, frozen, slots)
        read = {roles.token_ids: ids, roles.mask: mask, **positions_of(roles, mask)}
        logits, cache = call(**read, **{roles.cache_length: self._max_length})
        self._cache_axes = call.cache_axes
        counts = jnp.ones_like(limits)
        last = self._choose(logits, numbers, jnp.zeros_like(counts))
        written = jnp.zeros((len(ids), self._max_length), jnp.int32).at[:, 0].set(last)
        done = self._ended(last) | (counts >= limits)
        return _Rows(slots, numbers, limits, counts, last, done, written, cache)

    def _traced_exchange(self, state: _Rows, places: Int32[jax.Array, ' n'], fresh: _Rows) -> _Rows:
        def exchanged(axis: int, many: jax.Array, few: jax.Array) -> jax.Array:
            return many.at[(slice(None),) * axis + (places,)].set(few)

        return jax.tree.map(exchanged, self._row_axes(), state, fresh)

    def _traced_write(self, bank: Bank, frozen: Frozen, state: _Rows) -> _Rows:
        roles, call = self._roles, self._calls(bank, frozen, state.slots)
        before = state.done.sum()

        def goes_on(state: _Rows) -> Bool[jax.Array, '']:
            return state.done.sum() == before

        def step(state: _Rows) -> _Rows:
            ids = {roles.token_ids: state.last[:, None], roles.cache: state.cache}
            logits, cache = call(**ids)
            last = self._choose(logits, state.numbers, state.counts)
            row = jnp.arange(self.rows)
            kept = state.written[row, state.counts]
            written = state.written.at[row, state.counts].set(jnp.where(state.done, kept, last))
            counts = jnp.where(state.done, state.counts, state.counts + 1)
            done = state.done | self._ended(last) | (counts >= state.limits)
            return dataclasses.replace(
                state, cache=cache, last=last, written=written, counts=counts, done=done
            )

        return jax.lax.while_loop(goes_on, step, state)

    def _choose(
        self,
        logits: Float[jax.Array, 'n _ V'],
        numbers: Int32[jax.Array, ' n'],
        counts: Int32[jax.Array, ' n'],
    ) -> Int32[jax.Array, ' n']:
        def one(
            logits: Float[jax.Array, '_ V'], number: Int32[jax.Array, ''], count: Any
        ) -> Int32[jax.Array, '']:
            key = jax.random.fold_in(jax.random.fold_in(self._key, number), count)
            return self._sampling.choose(logits[-1:], key)[0]

        return jax.vmap(one)(logits, numbers, counts)

    def _ended(self, tokens: Int32[jax.Array, ' n']) -> Bool[jax.Array, ' n']:
        return jnp.isin(tokens, jnp.asarray(self._ends, jnp.int32))


def _padded(length: int) -> int:
    """The length that a prompt is padded to."""
    return max(16, 1 << (length - 1).bit_length())
