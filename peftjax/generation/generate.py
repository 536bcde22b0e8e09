"""Continues a prompt: one call for the prompt, then one for each token."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32, PRNGKeyArray

from peftjax.binding import calls
from peftjax.binding.adapt import evaluate_precomputed
from peftjax.binding.precompute import precompute
from peftjax.core.combine import chain
from peftjax.core.entries import Adapter
from peftjax.core.frozen import Frozen, check_frozen
from peftjax.core.model import Model
from peftjax.core.roles import Roles
from peftjax.core.transform import PeftTransform
from peftjax.generation.loop import Settings, write
from peftjax.generation.prompts import Ids, read_prompts
from peftjax.generation.sampling import Sampling


def generator(model: Model, transform: PeftTransform | None = None) -> Callable[..., jax.Array]:
    """`generate(adapter, frozen, input_ids, ...)`: the tokens that the adapted model writes.

    One call reads the prompt and fills a cache of keys and values; a loop then calls the model on
    one token at a time. All of it is one compiled program. Arrays that depend only on weights
    (DoRA's norms, rotations, composed factors) are computed once, before the loop. Virtual tokens
    and prefixes belong to the first call: they are in the cache, or before it in attention. With a
    method that reads whole examples (gates, ReFT at the last positions) there is no cache: each
    token is a call on the whole row.

    Args:
        model: a decoder of `peftjax.load`, or any model with the roles `token_ids`, `mask`,
            `positions`, `cache` and `cache_length` that takes them like
            `peftjax.models.llama.Llama`. An encoder with a decoder needs `decoder_ids` and
            `decoder_mask` instead of `positions`, like `peftjax.models.t5.T5`, and may have the
            role `features` instead of `token_ids`, like `peftjax.models.whisper.Whisper`.
        transform: the method, or a chain of methods. None for the plain model: the adapter is then
            `()`, and frozen is `peftjax.chain().freeze(model, ())`.

    Returns:
        `generate(adapter, frozen, input_ids, attention_mask=None, *, max_new_tokens, eos_token_id=
        None, pad_token_id=0, start_token_id=0, sampling=Sampling(), key=None) -> int32 [B,
        max_new_tokens]`. Rows are padded on the left, see `pad_left`; an encoder may take padding
        on either side, and its decoder starts with `start_token_id` (one id, or several). After an
        `eos_token_id` (one id, or several) a row is padded with `pad_token_id`; the loop ends when
        all rows have one. It is compiled once for each shape and setting.

    Raises:
        TypeError: from the call, if `frozen` is not the second result of `init`.
        ValueError: from the call: the model has no cache, a prompt is not `[B, T]` or its last
            column is padding, max_new_tokens is below 1, or a temperature has no key.

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
    model = model.replace(params=None)  # The closure must not keep the values of a base alive.
    roles = model.roles or Roles()

    @functools.partial(jax.jit, static_argnames='settings')
    def compiled(
        adapter: Adapter,
        frozen: Frozen,
        read: dict[str, jax.Array],
        key: PRNGKeyArray,
        *,
        settings: Settings,
    ) -> Int32[jax.Array, 'B {settings.count}']:
        rules, params = precompute(
            model, method.rules(adapter, frozen.own), frozen.params, many_calls=True
        )

        def call(**keywords: Any) -> Any:
            return evaluate_precomputed(model, rules, params, None, calls.split((), keywords))

        return write(roles, rules, call, read, key, settings)

    def generate(
        adapter: Adapter,
        frozen: Frozen,
        input_ids: Ids,
        attention_mask: Ids | None = None,
        **options: Any,
    ) -> Int32[jax.Array, 'B new']:
        check_frozen(adapter, frozen)
        read, key, settings = request(model, input_ids, attention_mask, **options)
        return compiled(adapter, frozen, read, key, settings=settings)

    return generate


def request(
    model: Model,
    input_ids: Ids,
    attention_mask: Ids | None = None,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    start_token_id: int | Sequence[int] = 0,
    sampling: Sampling | None = None,
    key: PRNGKeyArray | None = None,
) -> tuple[dict[str, jax.Array], PRNGKeyArray, Settings]:
    """The arguments of `generate` as arguments of the model, the key, and the static settings.

    Raises:
        ValueError: see `generator`.
    """
    sampling = Sampling() if sampling is None else sampling
    check_decoder(model)
    check_key(sampling, key)
    if max_new_tokens < 1:
        raise ValueError(f'max_new_tokens must be at least 1, got {max_new_tokens}')
    read = read_prompts(model.roles or Roles(), input_ids, attention_mask)
    ends = () if eos_token_id is None else tuple(np.atleast_1d(eos_token_id).tolist())
    start = start_of(model.roles or Roles(), start_token_id)
    key = jax.random.key(0) if key is None else key
    return read, key, Settings(max_new_tokens, ends, pad_token_id, start, sampling)


def check_decoder(model: Model) -> None:
    """Raises `ValueError` for a model without a cache."""
    roles = model.roles or Roles()
    own = ('decoder_ids', 'decoder_mask') if roles.decoder_ids else ('mask', 'positions')
    own += ('token_ids',) if not roles.features else ()
    missing = [name for name in ('cache', 'cache_length', *own) if not getattr(roles, name)]
    if missing:
        raise ValueError(
            f'this model takes {model.takes} and has no argument with the roles {missing}; use a '
            'decoder that has them, such as those of peftjax.load'
        )


def start_of(roles: Roles, start_token_id: int | Sequence[int]) -> tuple[int, ...]:
    """The ids that a decoder with an encoder starts with.

    Raises:
        ValueError: there is none.
    """
    start = tuple(int(each) for each in np.atleast_1d(start_token_id))
    if roles.decoder_ids and not start:
        raise ValueError(
            'a decoder with an encoder starts with a token: write start_token_id=<id>, or several'
        )
    return start


def check_key(sampling: Sampling, key: PRNGKeyArray | None) -> None:
    """Raises `ValueError` for a temperature without a key."""
    if sampling.temperature > 0 and key is None:
        raise ValueError(
            f'temperature {sampling.temperature} needs a key; give key=jax.random.key(0)'
        )
