"""The programs of a server: one that reads prompts, and one that writes tokens."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, PRNGKeyArray

from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.generation.sampling import Sampling
from peftjax.serving.bank import Bank
from peftjax.serving.generate import RowCalls
from peftjax.serving.predict import members_of
from peftjax.serving.reading import Reading, Request


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
        cache: a tree, with rows on the axes of the model, or in front if the model has no such
          axis.
    """

    slots: jax.Array
    numbers: jax.Array
    limits: jax.Array
    counts: jax.Array
    last: jax.Array
    done: jax.Array
    written: jax.Array
    cache: Any


class Served(NamedTuple):
    """The values that the requests of one call share.

    Attributes:
        bank, frozen: as `peftjax.serving.bank` gives them.
        key: for draws.
        virtual: the number of places that the bank's adapters take in front of a prompt.
    """

    bank: Bank
    frozen: Frozen
    key: PRNGKeyArray
    virtual: int

    @property
    def arrays(self) -> tuple[Bank, Frozen, PRNGKeyArray]:
        """The part of it that programs take."""
        return self.bank, self.frozen, self.key


class Programs:
    """The programs of a server: one that reads prompts, one that writes tokens."""

    def __init__(
        self,
        model: Model,
        rows: int,
        reading: Reading,
        ends: tuple[int, ...],
        sampling: Sampling,
    ):
        self.rows = rows
        self._model, self._reading = model, reading
        self._ends, self._sampling = ends, sampling
        self._cache_axes: Any = None  # Known once a prompt was read.
        self._features = ''  # The type and shape of the first that were read.
        self._read = jax.jit(self._traced_read)
        self._exchange = jax.jit(self._traced_exchange)
        self._write = jax.jit(self._traced_write)

    def judge(self, served: Served, request: Request) -> str:
        """The reason why a request cannot be answered, or ''.

        The first features that the model takes are the measure of all others: the cache of a row
        has one size.
        """
        reason = self._reading.refusal(request, served.virtual) or served.bank.refusal(request.slot)
        if reason or not self._reading.roles.features:
            return reason
        read = self._reading.arrays([request.prompt])
        [features] = read.values()
        found = f'{features.dtype}{list(features.shape[1:])}'
        if not self._features:
            return self._first_features(read, found)
        if found != self._features:
            return f'the prompt is {found}; write {self._features}, as the first one was'
        return ''

    def _first_features(self, read: dict[str, np.ndarray], found: str) -> str:
        """What the model says against features, or ''; it is asked once, and runs nothing."""
        try:
            jax.eval_shape(
                lambda params: self._model.apply(params, **self._reading.first(read)),
                self._model.params,
            )
        except ValueError as error:  # The reason is in the answer, and the others go on.
            return str(error)
        self._features = found
        return ''

    def groups(self, coming: Mapping[int, Request]) -> list[dict[int, Request]]:
        """Requests by number, grouped by the shape of their padded prompts."""
        found: dict[tuple[int, ...], dict[int, Request]] = {}
        for number, request in coming.items():
            found.setdefault(self._reading.shape(request.prompt), {})[number] = request
        return list(found.values())

    def admit(
        self, served: Served, state: _Rows | None, places: list[int], group: Mapping[int, Request]
    ) -> _Rows:
        """The rows, with new requests at `places` whose prompts have been read."""
        # A group of 3 becomes a group of 4, with its last request twice.
        more = (1 << (len(group) - 1).bit_length()) - len(group)
        members = list(group.items())
        places, members = places + places[-1:] * more, members + members[-1:] * more
        read = self._reading.arrays([request.prompt for _, request in members])
        told = [(number, request.slot, request.max_new_tokens) for number, request in members]
        numbers, slots, limits = np.array(told, np.int32).T
        fresh: _Rows = self._read(*served.arrays, slots, numbers, limits, read)
        if state is None:
            rows = np.zeros(self.rows, np.int32)
            empty: _Rows = jax.tree.map(
                lambda axis, leaf: jnp.take(leaf, rows, axis), self._row_axes(), fresh
            )
            state = dataclasses.replace(empty, done=jnp.ones(self.rows, bool))
        return self._exchange(state, np.array(places, np.int32), fresh)

    def advance(self, served: Served, state: _Rows) -> _Rows:
        """The rows after writing tokens until another row is done."""
        return self._write(*served.arrays, state)

    def _row_axes(self) -> _Rows:
        cache = jax.tree.map(lambda axis: max(axis, 0), self._cache_axes)  # SHARED: in front.
        return _Rows(0, 0, 0, 0, 0, 0, 0, cache)  # pyright: ignore[reportArgumentType] (axes)

    def _calls(self, bank: Bank, frozen: Frozen, slots: jax.Array) -> RowCalls:
        method, members = members_of(self._model, bank, slots, frozen.params)
        return RowCalls(method, members, frozen.params, cache_axes=self._cache_axes, apart=True)

    def _traced_read(
        self,
        bank: Bank,
        frozen: Frozen,
        key: PRNGKeyArray,
        slots: Int32[jax.Array, ' n'],
        numbers: Int32[jax.Array, ' n'],
        limits: Int32[jax.Array, ' n'],
        read: dict[str, jax.Array],
    ) -> _Rows:
        call = self._calls(bank, frozen, slots)
        logits, cache = call(**self._reading.first(read))
        self._cache_axes = call.cache_axes
        counts = jnp.ones_like(limits)
        last = self._choose(key, logits, numbers, jnp.zeros_like(counts))
        written = jnp.zeros((len(slots), self._reading.max_length), jnp.int32).at[:, 0].set(last)
        done = self._ended(last) | (counts >= limits)
        return _Rows(slots, numbers, limits, counts, last, done, written, cache)

    def _traced_exchange(self, state: _Rows, places: Int32[jax.Array, ' n'], fresh: _Rows) -> _Rows:
        def exchanged(axis: int, many: jax.Array, few: jax.Array) -> jax.Array:
            return many.at[(slice(None),) * axis + (places,)].set(few)

        return jax.tree.map(exchanged, self._row_axes(), state, fresh)

    def _traced_write(self, bank: Bank, frozen: Frozen, key: PRNGKeyArray, state: _Rows) -> _Rows:
        roles, call = self._reading.roles, self._calls(bank, frozen, state.slots)
        before = state.done.sum()

        def goes_on(state: _Rows) -> Bool[jax.Array, '']:
            return state.done.sum() == before

        def step(state: _Rows) -> _Rows:
            written_as = roles.decoder_ids or roles.token_ids
            ids = {written_as: state.last[:, None], roles.cache: state.cache}
            logits, cache = call(**ids)
            last = self._choose(key, logits, state.numbers, state.counts)
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
        key: PRNGKeyArray,
        logits: Float[jax.Array, 'n _ V'],
        numbers: Int32[jax.Array, ' n'],
        counts: Int32[jax.Array, ' n'],
    ) -> Int32[jax.Array, ' n']:
        def one(
            logits: Float[jax.Array, '_ V'], number: Int32[jax.Array, ''], count: Any
        ) -> Int32[jax.Array, '']:
            own = jax.random.fold_in(jax.random.fold_in(key, number), count)
            return self._sampling.choose(logits[-1:], own)[0]

        return jax.vmap(one)(logits, numbers, counts)

    def _ended(self, tokens: Int32[jax.Array, ' n']) -> Bool[jax.Array, ' n']:
        return jnp.isin(tokens, jnp.asarray(self._ends, jnp.int32))
