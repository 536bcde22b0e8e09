"""Attention by the kernel that fits the call: cuDNN, splash or plain products."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Float

from peftjax.core.masks import Mask
from peftjax.models import cudnn, splash
from peftjax.models.per_device import per_device, splits_evenly
from peftjax.models.plain import attend_plainly

_PLATFORMS = {'cudnn': 'cuda', 'splash': 'tpu'}
_KERNELS = {'cudnn': cudnn, 'splash': splash}


def attend(
    query: Float[jax.Array, 'B T N H'],
    key: Float[jax.Array, 'B S K H'],
    value: Float[jax.Array, 'B S K H'],
    mask: Mask | None = None,
    *,
    bias: Float[jax.Array, '...'] | tuple[Float[jax.Array, '...'], ...] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: tuple[float, jax.Array] | None = None,
    implementation: str | None = None,
) -> Float[jax.Array, 'B T N H']:
    r"""softmax(c · tanh(q kᵀ · scale / c) + bias) v over the keys that a query sees.

    The softmax is in float32. A query that sees no key gets a finite but meaningless result.

    Unless `implementation` names a kernel, it is chosen by the structure of the mask, the dtype and
    the platform that the program is compiled for, which need not be that of this machine:

    - 'cudnn' on NVIDIA GPUs since Ampere: bfloat16 and float16, heads of at most 128 features, at
      least 64 queries; no bias, soft cap, dropout or cache. Packed segments, a window with a prefix
      and, for heads of more than 120 features, padding need an array [B, 1, T, S].
    - 'splash' on TPUs: bfloat16 and float32, at least 128 queries; no bias, dropout or cache, no
      array in the mask, no prefix with packed segments.
    - 'plain' otherwise, in blocks of 256 queries.

    The fused kernels keep only their arguments for the backward pass.

    Args:
        query, key, value: N is a multiple of K; S includes the prefix of the mask.
        mask: which keys a query sees; None for all.
        bias: is added to the scores; broadcastable to [B, N, T, S], with four axes. Or a tuple of
            such arrays, each for some of the keys, in their order.
        scale: None for 1 / √H.
        softcap: c; None for no bound.
        dropout: the rate and the random key of dropout on the probabilities.
        implementation: 'plain', 'cudnn', 'splash', or None to choose.

    Raises:
        ValueError: the implementation is unknown or cannot compute this call; the bias has another
            shape.

    Example:
        >>> q = jnp.ones((1, 3, 4, 8))
        >>> attend(q, q[:, :, :2], q[:, :, :2], Mask(causal=True)).shape
        (1, 3, 4, 8)
    """
    if bias is not None:
        _check_bias(bias, (*query.shape[:1], query.shape[2], query.shape[1], key.shape[1]))
    mask = Mask() if mask is None else mask
    if mask.window is not None and mask.window >= key.shape[1] - mask.prefix:
        mask = dataclasses.replace(mask, window=None, windowed=None)
    factor = float(query.shape[3] ** -0.5 if scale is None else scale)
    names = _fused(implementation, query, key, mask, bias=bias, softcap=softcap, dropout=dropout)
    if not names:
        return attend_plainly(
            query, key, value, mask, bias=bias, scale=factor, softcap=softcap, dropout=dropout
        )
    call = _Call(names, implementation is not None, factor, softcap)
    if mask.windowed is None:
        return _by_platform(call, query, key, value, mask)
    # Layers of one scan differ in their window: both kernels are compiled, each layer runs one.
    near = dataclasses.replace(mask, windowed=None)
    return jax.lax.cond(
        mask.windowed,
        lambda *operands: _by_platform(call, *operands, near),
        lambda *operands: _by_platform(call, *operands, dataclasses.replace(near, window=None)),
        query,
        key,
        value,
    )


def _check_bias(bias: Any, scores: tuple[int, ...]) -> None:
    if isinstance(bias, tuple):
        shapes = [part.shape for part in bias]
        if any(len(shape) != 4 for shape in shapes) or sum(s[3] for s in shapes) != scores[3]:
            raise ValueError(
                f'the parts of bias have shapes {shapes}, but the scores [batch, heads, queries, '
                f'keys] have {scores}; write four axes, of which the last add up to the keys'
            )
        for part in bias:
            _check_bias(part, (*scores[:3], part.shape[3]))
        return
    shape = bias.shape
    if len(shape) != 4 or any(n not in (1, full) for n, full in zip(shape, scores, strict=True)):
        raise ValueError(
            f'bias has shape {shape}, but the scores [batch, heads, queries, keys] have {scores}; '
            'write four axes that broadcast to these, such as bias[None, None] for a bias '
            '[queries, keys]'
        )


def _fused(
    implementation: str | None, query: jax.Array, key: jax.Array, mask: Mask, **others: Any
) -> tuple[str, ...]:
    """Names of the fused kernels that can compute this call."""
    if implementation not in (None, 'plain', *_KERNELS):
        raise ValueError(
            f'implementation={implementation!r} is unknown: write one of '
            f'{sorted(("plain", *_KERNELS))}, or None to choose by the call'
        )
    reasons = {
        name: kernel.obstacle(query, key, mask, **others)
        for name, kernel in _KERNELS.items()
        if name == implementation or (implementation is None and kernel.is_there())
    }
    if not splits_evenly(len(query)):
        uneven = f'the mesh does not divide the {len(query)} examples'
        reasons = {name: reason or uneven for name, reason in reasons.items()}
    reason = reasons.get(implementation or '')
    if reason is not None:
        raise ValueError(
            f'implementation={implementation!r} cannot compute this call: {reason}; write '
            'implementation=None to choose a kernel that can'
        )
    return tuple(name for name, reason in reasons.items() if reason is None)


class _Call(NamedTuple):
    """The static arguments of a call.

    Attributes:
        names: of the fused kernels, each for its platform.
        forced: use the only kernel on every platform.
    """

    names: tuple[str, ...]
    forced: bool
    scale: float
    softcap: float | None

    def pick(self, plain: Callable[..., Any], fused: dict[str, Callable[..., Any]]) -> Any:
        """The function of the platform, chosen when the program is lowered."""
        split = {name: functools.partial(per_device, fused[name]) for name in self.names}
        if self.forced:
            return split[self.names[0]]
        by_platform = {_PLATFORMS[name]: function for name, function in split.items()}
        return lambda *operands: jax.lax.platform_dependent(*operands, default=plain, **by_platform)

    def plain(self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask) -> jax.Array:
        return attend_plainly(
            query, key, value, mask, bias=None, scale=self.scale, softcap=self.softcap, dropout=None
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_platform(
    call: _Call, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask
) -> jax.Array:
    """Forward and backward pass choose separately, so that kernels need not share residuals."""
    return _forward(call, query, key, value, mask)[0]


def _forward(call, query, key, value, mask):
    fused = {
        'cudnn': functools.partial(cudnn.forward, scale=call.scale),
        'splash': functools.partial(splash.forward, scale=call.scale, softcap=call.softcap),
    }
    operands = query, key, value, mask
    return call.pick(call.plain, fused)(*operands), operands


def _backward(call, operands, slope):
    def differentiated(function: Callable[..., jax.Array]) -> Callable[..., Any]:
        def gradients(query, key, value, mask, slope):
            return jax.vjp(lambda *qkv: function(*qkv, mask), query, key, value)[1](slope)

        return gradients

    fused = {
        'cudnn': functools.partial(cudnn.backward, scale=call.scale),
        'splash': differentiated(
            functools.partial(splash.forward, scale=call.scale, softcap=call.softcap)
        ),
    }
    return *call.pick(differentiated(call.plain), fused)(*operands, slope), None


_by_platform.defvjp(_forward, _backward)
