"""Writes tokens behind a prompt: one call for the prompt, then one for each token."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int32, PRNGKeyArray

from peftjax.binding import calls
from peftjax.binding.adapt import evaluate_precomputed
from peftjax.binding.precompute import precompute
from peftjax.core.combine import chain
from peftjax.core.entries import Adapter
from peftjax.core.frozen import Frozen, check_frozen
from peftjax.core.model import Model
from peftjax.core.roles import Roles
from peftjax.core.rules import ROOT, CallRule, Rule
from peftjax.core.transform import PeftTransform
from peftjax.generation.prompts import Ids, read_prompts
from peftjax.generation.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a program is compiled for, besides the shapes.

    Attributes:
        count: how many tokens are written.
        ends: ids behind which a row is filled up with `pad`.
        start: ids that the decoder starts with, where there is an encoder.
    """

    count: int
    ends: tuple[int, ...]
    pad: int
    start: tuple[int, ...]
    sampling: Sampling


def generator(model: Model, transform: PeftTransform | None = None) -> Callable[..., jax.Array]:
    """`generate(adapter, frozen, input_ids, ...)`: the tokens that the adapted model writes.

    The prompt is read in one call, which fills a cache of keys and values; each token is then one
    call of one token, in a loop inside of one compiled program. What a method prepares from weights
    alone (DoRA's norms, rotations, composed factors) is computed once, before the loop. Virtual
    tokens and prefixes belong to the first call: they are in the cache, or before it in attention.
    With a method that reads whole examples (gates, ReFT at the ends) there is no cache: each
    token is a call on the whole row, and what is written is what full calls say.

    Args:
        model: a decoder of `peftjax.load`, or any model with the roles `token_ids`, `mask`,
            `positions`, `cache` and `cache_length` that takes them as `peftjax.models.llama.Llama`
            does; or an encoder and decoder with the roles `decoder_ids` and `decoder_mask` too, as
            `peftjax.models.t5.T5`. Without `token_ids`, as of `peftjax.models.whisper.Whisper`, the
            role `features` stands for them.
        transform: the method, or a chain of methods. None for the model as it is: the adapter is
            then `()`, and frozen is `peftjax.chain().freeze(model, ())`.

    Returns:
        `generate(adapter, frozen, input_ids, attention_mask=None, *, max_new_tokens, eos_token_id=
        None, pad_token_id=0, start_token_id=0, sampling=Sampling(), key=None) -> int32 [B,
        max_new_tokens]`. Rows are padded on the left, see `pad_left`, but for an encoder, which
        takes them as they are and whose decoder starts with `start_token_id` (one id, or several).
        A row that has written `eos_token_id` (one id, or several) is filled up with
        `pad_token_id`, and the loop ends when all have. Compiled once for each shape and setting.

    Raises:
        TypeError: from the call, if `frozen` is not what `init` gave.
        ValueError: from the call, for a model without a cache, a prompt that is not `[B, T]` or
            whose last column is padding, no new token, or a temperature without a key.

    Example:
        >>> from peftjax.models.llama import Llama
        >>> from peftjax.models.llama_config import LlamaConfig
        >>> module = Llama(LlamaConfig(50, 16, 32, 2, 4, 2, 4))
        >>> ids = jnp.ones((2, 5), jnp.int32)
        >>> params = module.init(jax.random.key(0), input_ids=ids)['params']
        >>> model = peftjax.wrap(module, params, {'input_ids': ids})
        >>> frozen = peftjax.chain().freeze(model, ())
        >>> peftjax.generator(model)((), frozen, ids, max_new_tokens=3).shape
        (2, 3)

    Source: the cache of Pope et al. 2022 (arXiv:2211.05102), section 2.1.
    """
    method = chain() if transform is None else transform
    model = model.replace(params=None)  # Nothing here keeps the values of a base alive.
    roles = model.roles or Roles()
    written_as = roles.decoder_ids or roles.token_ids

    @functools.partial(jax.jit, static_argnames='settings')
    def compiled(
        adapter: Adapter,
        frozen: Frozen,
        read: dict[str, jax.Array],
        key: PRNGKeyArray,
        *,
        settings: _Settings,
    ) -> Int32[jax.Array, 'B {settings.count}']:
        rules, params = precompute(model, method.rules(adapter, frozen.own), frozen.params)
        root = rules.get(ROOT)
        virtual = root.virtual_tokens if isinstance(root, CallRule) else 0

        def call(**keywords: Any) -> Any:
            return evaluate_precomputed(model, rules, params, None, calls.split((), keywords))

        def follow(tokens: Int32[jax.Array, ' B'], cache: Any) -> Any:
            return call(**{written_as: tokens[:, None], roles.cache: cache})

        if _reads_whole_examples(rules):
            again, logits, row = _on_whole_rows(roles, call, read, settings)
            return _write(again, logits, row, key, settings)
        first, given = _first_call(roles, read, virtual, settings.start)
        length = {roles.cache_length: given + settings.count - 1}
        logits, cache = call(**read, **first, **length)
        return _write(follow, logits, cache, key, settings)

    def generate(
        adapter: Adapter,
        frozen: Frozen,
        input_ids: Ids,
        attention_mask: Ids | None = None,
        *,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int = 0,
        start_token_id: int | Sequence[int] = 0,
        sampling: Sampling | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Int32[jax.Array, 'B {max_new_tokens}']:
        check_frozen(adapter, frozen)
        sampling = Sampling() if sampling is None else sampling
        _check(model, max_new_tokens, sampling, key)
        read = read_prompts(roles, input_ids, attention_mask)
        ends = () if eos_token_id is None else tuple(np.atleast_1d(eos_token_id).tolist())
        start = tuple(np.atleast_1d(start_token_id).tolist())
        settings = _Settings(max_new_tokens, ends, pad_token_id, start, sampling)
        key = jax.random.key(0) if key is None else key
        return compiled(adapter, frozen, read, key, settings=settings)

    return generate


def _reads_whole_examples(rules: Mapping[str, Rule]) -> bool:
    """Whether each token needs a call on the whole row.

    Raises:
        ValueError: the outputs of such calls hold virtual tokens.
    """
    whole = any(getattr(rule, 'whole', False) for rule in rules.values())
    root = rules.get(ROOT)
    if whole and isinstance(root, CallRule) and root.keeps_virtual:
        raise ValueError(
            'a method that reads whole examples calls the model on whole rows, whose outputs '
            'must be those of the tokens: write keep_virtual=False'
        )
    return whole


def _first_call(
    roles: Roles, read: dict[str, jax.Array], virtual: int, start: tuple[int, ...]
) -> tuple[dict[str, jax.Array], int]:
    """What the first call takes beside the prompts, and how many positions it fills of the cache.

    virtual: how many positions a method adds in front.
    """
    if roles.decoder_ids:
        rows = len(next(iter(read.values())))
        tokens = jnp.tile(jnp.asarray(start, jnp.int32), (rows, 1))
        return {roles.decoder_ids: tokens}, len(start)
    return _positions(roles, read[roles.mask]), read[roles.token_ids].shape[1] + virtual


def _positions(roles: Roles, mask: jax.Array) -> dict[str, jax.Array]:
    """The positions of tokens that padding on the left does not count for."""
    return {roles.positions: jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)}


def _on_whole_rows(
    roles: Roles, call: Callable[..., Any], read: dict[str, jax.Array], settings: _Settings
) -> tuple[Callable[[jax.Array, Any], Any], Float[jax.Array, 'B 1 V'], Any]:
    """What `_write` needs where each call sees the whole row: its tokens and which there are."""
    rows = len(next(iter(read.values())))
    if roles.decoder_ids:
        ids = jnp.tile(jnp.asarray(settings.start, jnp.int32), (rows, 1))
        mask = jnp.ones_like(ids)
    else:
        ids, mask = read[roles.token_ids], read[roles.mask]
    ids, mask = (jnp.pad(each, ((0, 0), (0, settings.count))) for each in (ids, mask))
    given = ids.shape[1] - settings.count

    def logits_of(ids: jax.Array, mask: jax.Array, last: Any) -> Float[jax.Array, 'B 1 V']:
        if roles.decoder_ids:
            row = {**read, roles.decoder_ids: ids, roles.decoder_mask: mask}
        else:
            row = {roles.token_ids: ids, roles.mask: mask, **_positions(roles, mask)}
        logits = call(**row)
        return lax.dynamic_slice_in_dim(logits, last, 1, axis=1)

    def again(tokens: Int32[jax.Array, ' B'], row: Any) -> Any:
        ids, mask, place = row
        ids, mask = ids.at[:, place].set(tokens), mask.at[:, place].set(1)
        return logits_of(ids, mask, place), (ids, mask, place + 1)

    return again, logits_of(ids, mask, given - 1), (ids, mask, jnp.int32(given))


def _write(
    follow: Callable[[jax.Array, Any], Any],
    logits: Float[jax.Array, 'B _ V'],
    cache: Any,
    key: PRNGKeyArray,
    settings: _Settings,
) -> Int32[jax.Array, 'B {settings.count}']:
    """All tokens, from the logits and the cache of the first call.

    follow: `follow(tokens [B], cache)` gives the logits behind the tokens, and the next cache; any
        tree may stand for the cache.
    """

    def choose(
        logits: Float[jax.Array, 'B _ V'], number: Int32[jax.Array, '']
    ) -> Int32[jax.Array, ' B']:
        return settings.sampling.choose(logits[:, -1], jax.random.fold_in(key, number))

    def ended(tokens: Int32[jax.Array, ' B']) -> Bool[jax.Array, ' B']:
        return jnp.isin(tokens, jnp.asarray(settings.ends, jnp.int32))

    def unfinished(state: Any) -> jax.Array:
        number, _, _, done, _ = state
        return (number < settings.count) & ~done.all()

    def step(state: Any) -> Any:
        number, written, last, done, cache = state
        logits, cache = follow(last, cache)
        token = jnp.where(done, settings.pad, choose(logits, number))
        written = written.at[:, number].set(token)
        return number + 1, written, token, done | ended(token), cache

    first = choose(logits, jnp.int32(0))
    written = jnp.full((len(logits), settings.count), settings.pad, jnp.int32)
    written = written.at[:, 0].set(first)
    state = jnp.int32(1), written, first, ended(first), cache
    return lax.while_loop(unfinished, step, state)[1]


def _check(model: Model, count: int, sampling: Sampling, key: PRNGKeyArray | None) -> None:
    roles = model.roles or Roles()
    own = ('decoder_ids', 'decoder_mask') if roles.decoder_ids else ('mask', 'positions')
    own += ('token_ids',) if not roles.features else ()
    missing = [name for name in ('cache', 'cache_length', *own) if not getattr(roles, name)]
    if missing:
        raise ValueError(
            f'this model takes {model.takes}, and has no argument with the roles {missing}: '
            'generation needs a decoder that takes them, as those of peftjax.load do'
        )
    if count < 1:
        raise ValueError(f'max_new_tokens must be at least 1, got {count}')
    if sampling.temperature > 0 and key is None:
        raise ValueError(
            f'temperature {sampling.temperature} draws tokens; give key=jax.random.key(0)'
        )
