"""Text from a decoder, with an adapter for each row."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Int32, PRNGKeyArray

from peftjax.binding import calls
from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.core.roles import Roles
from peftjax.core.rules import Rule
from peftjax.generation.generate import request
from peftjax.generation.loop import Settings, write
from peftjax.generation.prompts import Ids
from peftjax.serving.bank import Bank
from peftjax.serving.predict import checked, holds, members_of, result_axes, shapes_alone
from peftjax.serving.rows import SHARED, Axes, Member, Method, mapped


def generator(model: Model) -> Callable[..., jax.Array]:
    """`generate(bank, slots, frozen, input_ids, ...)`: text, with an adapter for each row.

    Like `peftjax.generator`, with the same further arguments: one compiled loop for all rows and
    adapters. The adapters of the rows are taken from the bank once, before the loop.

    Args:
        model: a decoder, or an encoder and decoder, see `peftjax.generator`.

    Returns:
        `generate(bank, slots, frozen, input_ids, attention_mask=None, *, max_new_tokens, ...) ->
        int32 [B, max_new_tokens]`. `slots`: int [B], see `peftjax.serving.adapt`. Compiled once for
        each shape and setting; other adapters and other slots are data. Under `jax.jit`, a slot
        that is empty or does not exist gives -1 in its row.

    Raises:
        ValueError: from the call, slots that are empty or do not exist; see `peftjax.generator`.

    Example:
        >>> from peftjax.models.llama import Llama
        >>> from peftjax.models.llama_config import LlamaConfig
        >>> module = Llama(LlamaConfig(50, 16, 32, 2, 4, 2, 4))
        >>> ids = jnp.ones((2, 5), jnp.int32)
        >>> params = module.init(jax.random.key(0), input_ids=ids)['params']
        >>> model = peftjax.wrap(module, params, {'input_ids': ids})
        >>> tx = peftjax.lora(rank=2, targets=r'.*q_proj.*')
        >>> member = (tx, *tx.init(jax.random.key(0), model))
        >>> bank, frozen = peftjax.serving.bank(model, [member])
        >>> generate = peftjax.serving.generator(model)
        >>> generate(bank, jnp.array([0, 1]), frozen, ids, max_new_tokens=3).shape
        (2, 3)
    """
    model = shapes_alone(model)
    roles = model.roles or Roles()

    @functools.partial(jax.jit, static_argnames='settings')
    def compiled(
        bank: Bank,
        slots: jax.Array,
        frozen: Frozen,
        read: dict[str, jax.Array],
        key: PRNGKeyArray,
        *,
        settings: Settings,
    ) -> Int32[jax.Array, 'B {settings.count}']:
        method, members = members_of(model, bank, slots, frozen.params)
        call = RowCalls(method, members, frozen.params)
        tokens = write(roles, rules_of(bank), call, read, key, settings)
        return jnp.where(holds(bank, slots)[:, None], tokens, -1)

    def generate(
        bank: Bank,
        slots: Any,
        frozen: Frozen,
        input_ids: Ids,
        attention_mask: Ids | None = None,
        **options: Any,
    ) -> Int32[jax.Array, 'B new']:
        slots = checked(bank, slots, frozen)
        if len(input_ids) != len(slots):
            raise ValueError(
                f'input_ids has {len(input_ids)} rows, but slots has {len(slots)}; write one slot '
                'for each row'
            )
        read, key, settings = request(model, input_ids, attention_mask, **options)
        return compiled(bank, slots, frozen, read, key, settings=settings)

    return generate


def rules_of(bank: Bank) -> dict[str, Rule]:
    """The rules of any adapter of the bank, computed on shapes only."""

    def one(leaf: Any, shared: bool = False) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape if shared else leaf.shape[1:], leaf.dtype)

    own = [one(*each) for each in zip(jax.tree.leaves(bank.own), bank.shared, strict=True)]
    return dict(
        bank.transform.rules(
            jax.tree.map(one, bank.adapters),
            jax.tree.unflatten(jax.tree.structure(bank.own), own),
        )
    )


class RowCalls:
    """Calls the model with keyword arguments, each row with its adapter.

    Args:
        method: the part of the method that all rows share.
        members: the adapters of the rows.
        params: of the base.
        cache_axes: of rows in a cache that an earlier program made; else a first call finds them.
        apart: True if the cache of each row has its own length, so that rows can be exchanged.
          Arrays that a cache has once for all rows then have the rows in front.
    """

    def __init__(
        self,
        method: Method,
        members: Member,
        params: Any,
        *,
        cache_axes: Any = None,
        apart: bool = False,
    ):
        self._method, self._members, self._params = method, members, params
        self._cache = (method.model.roles or Roles()).cache
        self._apart = apart
        self.cache_axes = cache_axes

    def __call__(self, **keywords: Any) -> Any:
        call = calls.split((), keywords)
        own_cache = frozenset[int]() if self._apart else None
        if self._cache in keywords:
            arrays, own_cache = self._with_cache(keywords, own_cache)
            results = 0, self.cache_axes
        else:
            arrays = [0 if jnp.ndim(each) else SHARED for each in call.arrays]
            results = result_axes(self._method.model, call, arrays)
            if isinstance(results, tuple):
                self.cache_axes = results[1]
        axes = Axes(arrays, results, own_cache)
        return mapped(self._method, self._members, self._params, None, call, axes)

    def _with_cache(
        self, keywords: dict[str, Any], own_cache: frozenset[int] | None
    ) -> tuple[list[int], frozenset[int] | None]:
        """The axes of rows in the arrays of a call with a cache, and which of them are added."""
        marked = {
            name: self.cache_axes if name == self._cache else jax.tree.map(lambda _: 0, each)
            for name, each in keywords.items()
        }
        arrays = jax.tree.leaves(marked)
        if own_cache is not None:
            own_cache = frozenset(i for i, axis in enumerate(arrays) if axis == SHARED)
        return arrays, own_cache
