"""Continuous batching: requests of different lengths and adapters, in the rows of one batch."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.core.roles import Roles
from peftjax.core.rules import ROOT, CallRule
from peftjax.generation.generate import check_decoder, check_key, start_of
from peftjax.generation.sampling import Sampling
from peftjax.serving.bank import Bank
from peftjax.serving.generate import rules_of
from peftjax.serving.predict import shapes_alone
from peftjax.serving.programs import Programs, Served
from peftjax.serving.reading import Reading, Request

_END = object()


class Answer(NamedTuple):
    """The answer to a request.

    Attributes:
        number: of the request, from 0.
        tokens: int32 [at most max_new_tokens], up to and including the end token.
        refused: why the request cannot be answered; '' if it was answered.
    """

    number: int
    tokens: np.ndarray
    refused: str = ''


def server(
    model: Model,
    *,
    rows: int,
    max_length: int,
    max_prompt: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    start_token_id: int | Sequence[int] = 0,
    sampling: Sampling | None = None,
) -> Callable[..., Iterator[Answer]]:
    """`serve(bank, frozen, requests, key=None)`: answers as they are finished.

    Continuous batching: a batch has a fixed number of rows, and a row whose answer is finished
    takes the next request while the others continue. Each row has its adapter, its prompt and its
    place in the cache, so that an answer does not depend on what else is in the batch. Programs are
    compiled for prompts of 16, 32, 64, ... tokens, and for 1, 2, 4, ... requests that start
    together. An encoder reads prompts of one length, see `max_prompt`.

    Args:
        model: a decoder of `peftjax.load`, an encoder and decoder, or a model with the roles that
          `peftjax.generator` needs.
        rows: how many requests are answered at a time.
        max_length: size of the cache for each row: the padded prompt, the virtual tokens and the
            answer. With an encoder it is the cache of the decoder: the start tokens and the answer,
            and the virtual tokens if the encoder reads features.
        max_prompt: the tokens that an encoder reads. Shorter prompts are padded on the left to this
            length, and longer ones are refused. Only for an encoder of tokens.
        eos_token_id: an answer ends with it (one id, or several).
        start_token_id: a decoder with an encoder starts with it (one id, or several). 0 is T5's;
            Whisper has ids of its own.
        sampling: see `peftjax.Sampling`; greedy by default.

    Returns:
        A function that returns an iterator of `Answer`. It takes requests from the iterable when
        rows are free. The iterable may yield None if there is no request at the moment; the busy
        rows then continue. Each request draws by `key` and its own number. A request with an empty
        slot, no prompt, no new token, or more than `max_length` or `max_prompt` is answered with
        the reason in `Answer.refused`; the others continue.

    Raises:
        ValueError: fewer than one row; a model without a cache; an encoder of tokens without
            `max_prompt`, or another model with it; from `serve`, a method that reads whole
            examples, or a temperature without a key.

    Example:
        >>> from peftjax.models.llama import Llama
        >>> from peftjax.models.llama_config import LlamaConfig
        >>> module = Llama(LlamaConfig(50, 16, 32, 2, 4, 2, 4))
        >>> ids = jax.numpy.ones((1, 4), int)
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
    check_decoder(model)
    roles = model.roles or Roles()
    reading = Reading(roles, max_length, max_prompt, start_of(roles, start_token_id))
    ends = () if eos_token_id is None else tuple(np.atleast_1d(eos_token_id).tolist())
    programs = Programs(shapes_alone(model), rows, reading, ends, sampling)

    def serve(
        bank: Bank,
        frozen: Frozen,
        requests: Iterable[Request | None],
        key: PRNGKeyArray | None = None,
    ) -> Iterator[Answer]:
        check_key(sampling, key)
        key = jax.random.key(0) if key is None else key
        rules = rules_of(bank)
        if any(getattr(rule, 'whole', False) for rule in rules.values()):
            raise ValueError(
                f'{bank.transform!r} reads whole examples, which a cache does not keep; use '
                'peftjax.serving.generator'
            )
        root = rules.get(ROOT)
        virtual = root.virtual_tokens if isinstance(root, CallRule) else 0
        return _serve(programs, Served(bank, frozen, key, virtual), iter(requests))

    return serve


def _serve(
    programs: Programs, served: Served, requests: Iterator[Request | None]
) -> Iterator[Answer]:
    numbers, taken, state, more = itertools.count(), dict[int, int](), None, True
    while more or taken:
        free = [place for place in range(programs.rows) if place not in taken]
        coming: dict[int, Request] = {}
        while more and len(coming) < len(free):
            request = next(requests, _END)
            more = request is not _END
            if not isinstance(request, Request):
                break
            number = next(numbers)
            if refused := programs.judge(served, request):
                yield Answer(number, np.zeros(0, np.int32), refused)
            else:
                coming[number] = request
        for group in programs.groups(coming):
            places, free = free[: len(group)], free[len(group) :]
            state = programs.admit(served, state, places, group)
            taken |= dict(zip(places, group, strict=True))
        if state is None or not taken:
            continue
        done = np.asarray(state.done)
        if not any(done[place] for place in taken):
            state = programs.advance(served, state)
            done = np.asarray(state.done)
        counts, written = np.asarray(state.counts), np.asarray(state.written)
        for place in [place for place in taken if done[place]]:
            yield Answer(taken.pop(place), written[place, : counts[place]])
