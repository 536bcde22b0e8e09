"""The loop that writes tokens: a first call for the prompts, then a call for each token."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int32, PRNGKeyArray

from peftjax.core.roles import Roles
from peftjax.core.rules import ROOT, CallRule, Rule
from peftjax.generation.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static arguments of a program.

    Attributes:
        count: how many tokens to write.
        ends: ids that end a row; the rest of the row is `pad`.
        start: ids that the decoder starts with, if there is an encoder.
    """

    count: int
    ends: tuple[int, ...]
    pad: int
    start: tuple[int, ...]
    sampling: Sampling


def write(
    roles: Roles,
    rules: Mapping[str, Rule],
    call: Callable[..., Any],
    read: dict[str, jax.Array],
    key: PRNGKeyArray,
    settings: Settings,
) -> Int32[jax.Array, 'B {settings.count}']:
    """The tokens that follow the prompts.

    call: the model with `rules`, on keyword arguments.
    read: the prompts as arguments of the model.
    """
    written_as = roles.decoder_ids or roles.token_ids
    root = rules.get(ROOT)
    virtual = root.virtual_tokens if isinstance(root, CallRule) else 0

    def follow(tokens: Int32[jax.Array, ' B'], cache: Any) -> Any:
        return call(**{written_as: tokens[:, None], roles.cache: cache})

    if _reads_whole_examples(rules):
        again, logits, row = _on_whole_rows(roles, call, read, settings)
        return _write(again, logits, row, key, settings)
    first = first_call(roles, read, settings.start)
    tokens = 0 if roles.decoder_ids else read[roles.token_ids].shape[1]
    given = filled(roles, tokens, virtual, settings.start)
    length = {roles.cache_length: given + settings.count - 1}
    logits, cache = call(**read, **first, **length)
    return _write(follow, logits, cache, key, settings)


def _reads_whole_examples(rules: Mapping[str, Rule]) -> bool:
    """Whether each token needs a call on the whole row.

    Raises:
        ValueError: it does, and the outputs of its calls would hold virtual tokens.
    """
    whole = any(getattr(rule, 'whole', False) for rule in rules.values())
    root = rules.get(ROOT)
    if whole and isinstance(root, CallRule) and root.keeps_virtual:
        raise ValueError(
            'with a method that reads whole examples, outputs must not hold virtual tokens: write '
            'keep_virtual=False'
        )
    return whole


def first_call(
    roles: Roles, read: Mapping[str, jax.Array], start: tuple[int, ...]
) -> dict[str, jax.Array]:
    """Further arguments of the first call, which reads the prompts."""
    if roles.decoder_ids:
        rows = len(next(iter(read.values())))
        return {roles.decoder_ids: jnp.tile(jnp.asarray(start, jnp.int32), (rows, 1))}
    return positions_of(roles, read[roles.mask])


def filled(roles: Roles, tokens: int, virtual: int, start: tuple[int, ...]) -> int:
    """How many slots of the cache the first call fills.

    tokens: of a prompt, for a decoder without an encoder.
    virtual: how many virtual tokens a method adds.
    """
    if not roles.decoder_ids:
        return tokens + virtual
    # An encoder of tokens gets the virtual ones too, and nothing of it is in these slots.
    return len(start) + (0 if roles.token_ids else virtual)


def positions_of(roles: Roles, mask: jax.Array) -> dict[str, jax.Array]:
    """The positions of tokens, counted without the padding on the left."""
    return {roles.positions: jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)}


def _on_whole_rows(
    roles: Roles, call: Callable[..., Any], read: dict[str, jax.Array], settings: Settings
) -> tuple[Callable[[jax.Array, Any], Any], Float[jax.Array, 'B 1 V'], Any]:
    """`follow`, logits and cache for `_write` if each call sees the whole row.

    The cache is then the tokens of the row, their mask, and the place of the next token.
    """
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
            row = {roles.token_ids: ids, roles.mask: mask, **positions_of(roles, mask)}
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
    settings: Settings,
) -> Int32[jax.Array, 'B {settings.count}']:
    """All tokens, from the logits and the cache of the first call.

    follow: `follow(tokens [B], cache)` gives the logits after the tokens, and the next cache, which
        may be any tree.
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
