"""Writes tokens behind a prompt: one call for the prompt, then one for each token."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
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
from peftjax.core.rules import ROOT, CallRule
from peftjax.core.transform import PeftTransform
from peftjax.generation.sampling import Sampling

Ids = jax.Array | np.ndarray


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
    With a method that reads whole examples (gates, ReFT at last positions) there is no cache: each
    token is a call on the whole row, and what is written is what full calls say.

    Args:
        model: a decoder of `peftjax.load`, or any model that takes `cache_length` and `cache` as
            `peftjax.models.llama.Llama` does; or an encoder and decoder, as `peftjax.models.t5.T5`,
            or `peftjax.models.whisper.Whisper`, whose input_features then stand for input_ids.
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
    written_as = 'decoder_input_ids' if _has_encoder(model) else 'input_ids'

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
        whole = any(getattr(rule, 'whole', False) for rule in rules.values())

        def call(**keywords: Any) -> Any:
            return evaluate_precomputed(model, rules, params, None, calls.split((), keywords))

        def follow(tokens: Int32[jax.Array, ' B'], cache: Any) -> Any:
            return call(**{written_as: tokens[:, None]}, cache=cache)

        if whole:
            again, logits, row = _on_whole_rows(model, call, read, settings)
            return _write(again, logits, row, key, settings)
        first, given = _first_call(model, read, virtual, settings.start)
        logits, cache = call(**read, **first, cache_length=given + settings.count - 1)
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
        read = _read(model, input_ids, attention_mask)
        ends = () if eos_token_id is None else tuple(np.atleast_1d(eos_token_id).tolist())
        start = tuple(np.atleast_1d(start_token_id).tolist())
        settings = _Settings(max_new_tokens, ends, pad_token_id, start, sampling)
        key = jax.random.key(0) if key is None else key
        return compiled(adapter, frozen, read, key, settings=settings)

    return generate


def pad_left(
    rows: Sequence[Sequence[int]], pad_token_id: int = 0
) -> tuple[Int32[np.ndarray, 'B L'], Int32[np.ndarray, 'B L']]:
    """Prompts of different lengths as `input_ids` and `attention_mask`, int32 [B, longest].

    Args:
        rows: token ids of each prompt, at least one.
        pad_token_id: what stands before the shorter ones.

    Raises:
        ValueError: no prompt, or one without a token.
        TypeError: text.

    Example:
        >>> ids, mask = pad_left([[5, 6, 7], [8]])
        >>> ids.tolist(), mask.tolist()
        ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    if isinstance(rows, str) or any(isinstance(row, str) for row in rows):
        raise TypeError('rows are token ids; write model.tokenizer.encode(text) for each text')
    if not len(rows) or not all(len(row) for row in rows):
        raise ValueError(f'every prompt needs a token, got lengths {[len(row) for row in rows]}')
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad_token_id, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for number, row in enumerate(rows):
        ids[number, length - len(row) :] = row
        mask[number, length - len(row) :] = 1
    return ids, mask


def _has_encoder(model: Model) -> bool:
    """Whether what is read and what is written are two sequences."""
    return 'decoder_input_ids' in model.takes


def _read(model: Model, input_ids: Ids, attention_mask: Ids | None) -> dict[str, jax.Array]:
    """The prompts as arguments of the model's first call."""
    if 'input_features' in model.takes:
        if attention_mask is not None:
            raise ValueError('a model that takes input_features hears all of them: no mask')
        return {'input_features': jnp.asarray(input_ids)}
    mask = np.ones_like(input_ids) if attention_mask is None else np.asarray(attention_mask)
    _check_prompts(np.asarray(input_ids), mask, right=_has_encoder(model))
    return {
        'input_ids': jnp.asarray(input_ids, jnp.int32),
        'attention_mask': jnp.asarray(mask, jnp.int32),
    }


def _first_call(
    model: Model, read: dict[str, jax.Array], virtual: int, start: tuple[int, ...]
) -> tuple[dict[str, jax.Array], int]:
    """What the first call takes beside the prompts, and how many positions it fills of the cache.

    virtual: how many positions a method adds in front.
    """
    if _has_encoder(model):
        rows = len(next(iter(read.values())))
        tokens = jnp.tile(jnp.asarray(start, jnp.int32), (rows, 1))
        return {'decoder_input_ids': tokens}, len(start)
    seen = jnp.cumsum(read['attention_mask'], axis=1)
    return {'position_ids': jnp.maximum(seen - 1, 0)}, read['input_ids'].shape[1] + virtual


def _on_whole_rows(
    model: Model, call: Callable[..., Any], read: dict[str, jax.Array], settings: _Settings
) -> tuple[Callable[[jax.Array, Any], Any], Float[jax.Array, 'B 1 V'], Any]:
    """What `_write` needs where each call sees the whole row: its tokens and which there are."""
    rows = len(next(iter(read.values())))
    if _has_encoder(model):
        ids = jnp.tile(jnp.asarray(settings.start, jnp.int32), (rows, 1))
        mask = jnp.ones_like(ids)
    else:
        ids, mask = read['input_ids'], read['attention_mask']
    ids, mask = (jnp.pad(each, ((0, 0), (0, settings.count))) for each in (ids, mask))
    given = ids.shape[1] - settings.count

    def logits_of(ids: jax.Array, mask: jax.Array, last: Any) -> Float[jax.Array, 'B 1 V']:
        if _has_encoder(model):
            logits = call(**read, decoder_input_ids=ids, decoder_attention_mask=mask)
        else:
            positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
            logits = call(input_ids=ids, attention_mask=mask, position_ids=positions)
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
    positions = () if _has_encoder(model) else ('position_ids',)
    if not {'cache_length', 'cache', *positions} <= set(model.takes):
        raise ValueError(
            f'this model takes {model.takes}, and no cache: generation needs a decoder that takes '
            'cache_length, cache and position_ids, as those of peftjax.load do'
        )
    if count < 1:
        raise ValueError(f'max_new_tokens must be at least 1, got {count}')
    if sampling.temperature > 0 and key is None:
        raise ValueError(
            f'temperature {sampling.temperature} draws tokens; give key=jax.random.key(0)'
        )


def _check_prompts(ids: np.ndarray, mask: np.ndarray, *, right: bool) -> None:
    """right: whether rows may be padded on the right."""
    if ids.ndim != 2 or ids.dtype.kind not in 'iu' or not ids.size or mask.shape != ids.shape:
        raise ValueError(
            f'input_ids {ids.dtype}{ids.shape} and attention_mask {mask.dtype}{mask.shape} must be '
            'integers [batch, length] of one shape; see peftjax.pad_left'
        )
    if not right and not mask[:, -1].all():
        row = int(np.argmin(mask[:, -1]))
        raise ValueError(
            f'row {row} of attention_mask ends with padding; pad prompts on the left, as '
            'peftjax.pad_left does'
        )
