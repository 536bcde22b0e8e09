"""The rules of a prefix: more keys and values at a core, and shifted positions of tokens."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from peftjax.core.errors import AdapterError
from peftjax.core.masks import behind
from peftjax.core.rules import CallRule, ModuleRule
from peftjax.core.use import AttentionUse, ModelCall, ModuleUse
from peftjax.methods.prompts.virtual_tokens import positions_of, token_ids_of


def of_call(
    sites: tuple[str, ...], count: int, shifts: bool, length: jax.Array | int | None = None
) -> CallRule:
    """Adds `length`, by default `count`, to the positions of tokens if `shifts`."""

    def apply(_: Any, call: ModelCall) -> Any:
        return call.run(
            {**call.arguments, **(_moved(call, sites, count, length) if shifts else {})}
        )

    def shorten(length: jax.Array) -> CallRule:
        return of_call(sites, count, shifts, length)

    return CallRule((), apply, count, shorten=shorten)


def _moved(
    call: ModelCall, sites: tuple[str, ...], count: int, length: jax.Array | int | None
) -> dict[str, Any]:
    """The arguments that change when the tokens get the positions after the prefix."""
    roles, length = call.roles, count if length is None else length
    # Distance biases are computed in every call. Positions in a cache are already moved.
    moved: dict[str, Any] = {roles.prefix_length: count} if roles.prefix_length else {}
    heard = roles.decoder_ids and not roles.token_ids
    if call.follows or (heard and not any(roles.matches('decoder', path) for path in sites)):
        return moved
    if roles.position_shift and call.given('positions') is None:
        shift = call.arguments.get(roles.position_shift, 0)
        moved[roles.position_shift] = shift + length
    elif roles.positions:
        given = positions_of(call, token_ids_of(call).shape[1])
        moved[roles.positions] = given + jnp.asarray(length, given.dtype)
    return moved


def at_core(path: str, entry: Mapping[str, Any], length: jax.Array | None = None) -> ModuleRule:
    def shorten(length: jax.Array) -> ModuleRule:
        return at_core(path, entry, length)

    apply, whole = _attend(path, length), 'gate' in entry
    return ModuleRule(dict(entry), apply, whole=whole, shorten=shorten, only_virtual=True)


def _attend(path: str, length: jax.Array | None) -> Callable[[Any, ModuleUse], jax.Array]:
    def apply(
        leaves: Mapping[str, Float[jax.Array, '...']], use: ModuleUse
    ) -> Float[jax.Array, 'B L query_heads H']:
        attention = use.attention
        if attention is None or attention.key.shape[-2:] != leaves['key'].shape[-2:]:
            found = use.output if attention is None else attention.key
            raise AdapterError(
                f"the adapter's keys for {path!r} are {leaves['key'].shape} "
                f'{leaves["key"].dtype}, but the module has {found.shape} {found.dtype}. '
                'Was it made for another model?'
            )
        share = _share(leaves, use) if 'gate' in leaves else None

        def longer(
            x: Float[jax.Array, 'B L heads H'], leaf: Float[jax.Array, 'n heads H']
        ) -> Float[jax.Array, 'B n+L heads H']:
            rows = jnp.broadcast_to(leaf[None].astype(x.dtype), (len(x), *leaf.shape))
            rows = rows if share is None else rows * share.astype(x.dtype)
            return jnp.concatenate([rows, x], axis=1)

        count = len(leaves['key'])
        return attention.attend(
            attention.query,
            longer(attention.key, leaves['key']),
            longer(attention.value, leaves['value']),
            behind(attention.mask, count),
            _longer_bias(attention, count, length),
        )

    return apply


def _longer_bias(attention: AttentionUse, count: int, length: jax.Array | None) -> Any:
    """The bias with `count` more keys in front; all but the last `length` of these are hidden."""
    bias, ahead = attention.bias, attention.prefix_bias
    if bias is None and length is None and ahead is None:
        return None
    if bias is None:
        bias = jnp.zeros((1, 1, 1, attention.key.shape[1]), attention.query.dtype)
    if ahead is None and not isinstance(bias, tuple):
        return _hidden(jnp.pad(bias, [(0, 0)] * 3 + [(count, 0)]), count, length)
    # In parts, for `ahead` may differ by rows where `bias`, which is much larger, does not.
    parts = bias if isinstance(bias, tuple) else (bias,)
    ahead = jnp.zeros((1, 1, 1, count), parts[0].dtype) if ahead is None else ahead
    return (_hidden(ahead, count, length), *parts)


def _hidden(bias: jax.Array, count: int, length: jax.Array | None) -> jax.Array:
    """`bias`, which begins with `count` keys; all but the last `length` of these are hidden."""
    if length is None:
        return bias
    hidden = jnp.arange(bias.shape[-1]) < count - length
    return jnp.where(hidden[None, None, None], jnp.finfo(bias.dtype).min, bias)


def _share(leaves: Mapping[str, Any], use: ModuleUse) -> Float[jax.Array, 'B 1 1 1']:
    """The gate of each example, a factor of its prefix.

    Raises:
      ValueError: a row holds several examples, or a part of one.
    """
    tokens, x = use.tokens(), use.around[0]
    if tokens.segments is not None:
        raise ValueError(
            'a gate on a prefix is one number for a row, but packed rows hold several examples; '
            'write prefix_tuning(gate=False), or put one example into each row'
        )
    tokens.check(x.shape, "the prefix's gate")
    weight, bias = leaves['gate'].astype(x.dtype), leaves['gate_bias'].astype(x.dtype)
    means = tokens.means(jax.nn.sigmoid(x @ weight + bias), 'prefix_tuning(gate=True)')
    return means[:, :, None, None]
