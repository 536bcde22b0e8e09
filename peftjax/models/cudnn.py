"""cuDNN's fused attention on NVIDIA GPUs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.masks import Mask

_LEAST = 64  # queries: scores of fewer are small, and not every version has a kernel for them
_MARGIN = 8  # features that are added to a head: cuDNN needs widths divisible by 8
_AWAY = {'bfloat16': (1.0, -(2.0**30)), 'float16': (2.0**7, -(2.0**15))}


@functools.cache
def is_there() -> bool:
    """Whether JAX finds cuDNN, and all local GPUs are Ampere or newer."""
    x = jax.ShapeDtypeStruct((1, _LEAST, 1, 64), jnp.bfloat16)
    try:
        jax.eval_shape(_kernel(False, None, 1.0), x, x, x, None)
    except RuntimeError:  # cuDNN is not detected
        return False
    gpus = [device for device in jax.local_devices() if device.platform == 'gpu']
    return all(float(getattr(device, 'compute_capability', 0)) >= 8 for device in gpus)


def obstacle(
    query: jax.Array,
    key: jax.Array,
    mask: Mask,
    *,
    bias: jax.Array | tuple[jax.Array, ...] | None,
    softcap: float | None,
    dropout: Any,
) -> str | None:
    """The reason why cuDNN cannot compute this call; None if it can."""
    length, keys, width = query.shape[1], key.shape[1], query.shape[3]
    if {query.dtype.name, key.dtype.name} not in ({'bfloat16'}, {'float16'}):
        return f'query is {query.dtype} and key {key.dtype}: both must be bfloat16 or float16'
    if width > 128 or width % 8:
        return f'heads have a width of {width}: it must be a multiple of 8, and at most 128'
    if length < _LEAST:
        return f'{length} queries are fewer than {_LEAST}'
    given = {'bias': bias, 'softcap': softcap, 'dropout': dropout, 'mask.offset': mask.offset}
    for name, value in given.items():
        if value is not None:
            return f'{name} is given'
    if mask.causal and length != keys - mask.prefix:
        return (
            f'a causal mask needs as many keys as queries, not {length} queries and '
            f'{keys - mask.prefix} keys'
        )
    if mask.array is not None and mask.array.shape[1] > 1:
        return 'the mask differs between heads'
    if _needs_array(query, mask) and (length % 2 or keys % 2):
        return f'{length} queries and {keys} keys need a mask array: both must be even then'
    return None


def forward(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, *, scale: float
) -> jax.Array:
    """`attend` by cuDNN, for calls without an `obstacle`; to be lowered for CUDA."""
    case = _Case(query, key, mask, scale)
    return case.result(case.kernel(*case.operands(query, key, value), case.seen))


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    slope: jax.Array,
    *,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of `forward` by query, key and value."""
    case = _Case(query, key, mask, scale)
    operands, pull = jax.vjp(case.operands, query, key, value)
    padded = jax.linear_transpose(case.result, operands[0])(slope)[0]
    return pull(case.gradients(*operands, case.seen, padded))


class _Case:
    """One call in the terms of the kernel.

    The kernel knows neither padding nor prefixes. Padding keys get an additional feature that is
    far below zero; it is zero for tokens, so that their scores do not change by a bit. A prefix
    that causal queries see becomes that number of idle queries in front, since the kernel lets
    query t see keys 0 to t. All other masks are an array [B or 1, 1, T, S].
    """

    def __init__(self, query: jax.Array, key: jax.Array, mask: Mask, scale: float) -> None:
        length, keys = query.shape[1], key.shape[1] - mask.prefix
        self.width, self.seen = query.shape[3], None
        causal, window = mask.causal, mask.window
        if _needs_array(query, mask):
            seen = mask.dense(length, keys)
            assert seen is not None
            self.seen = jnp.broadcast_to(seen, (len(seen), 1, length, key.shape[1]))
            causal, window = False, None
        self.idle = mask.prefix if causal else 0
        # Which keys, prefix included, are tokens; None without the additional feature.
        self.valid = None
        if mask.valid is not None and self.seen is None:
            before = [(0, 0), (mask.prefix, 0)]
            self.valid = jnp.pad(mask.valid, before, constant_values=True)
        self.kernel = _kernel(causal, window, scale)
        self.gradients = _gradients(causal, window, scale)

    def operands(self, query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
        front = [(0, 0), (self.idle, 0), (0, 0), (0, 0)]
        if self.valid is None:
            return jnp.pad(query, front), key, value
        near, away = _AWAY[query.dtype.name]
        mark = jnp.where(self.valid[:, :, None], 0.0, away).astype(key.dtype)
        mark = jnp.broadcast_to(mark[..., None], (*key.shape[:3], 1))
        query, key = (
            jnp.concatenate([x, first, jnp.zeros((*x.shape[:3], _MARGIN - 1), x.dtype)], axis=3)
            for x, first in ((query, jnp.full_like(query[..., :1], near)), (key, mark))
        )
        value = jnp.pad(value, [(0, 0), (0, 0), (0, 0), (0, _MARGIN)])
        return jnp.pad(query, front), key, value

    def result(self, attended: jax.Array) -> jax.Array:
        return attended[:, self.idle :, :, : self.width]


def _needs_array(query: jax.Array, mask: Mask) -> bool:
    if mask.array is not None or mask.segments is not None:
        return True
    if mask.window is not None and mask.prefix:
        return True
    return mask.valid is not None and query.shape[3] + _MARGIN > 128


@functools.cache
def _kernel(causal: bool, window: int | None, scale: float) -> Callable[..., jax.Array]:
    """Attention of query, key and value under an array that may be None.

    It is the primal of `jax.vjp`, so that the compiler finds the same kernel in `_gradients`.
    """

    def attend(query, key, value, seen):
        attend = functools.partial(_attend, causal, window, scale, seen=seen)
        return jax.vjp(attend, query, key, value)[0]

    return _folded(attend)


@functools.cache
def _gradients(causal: bool, window: int | None, scale: float) -> Callable[..., Any]:
    """The gradients of `_kernel`; the last argument is the gradient of its result.

    The forward kernel runs again. If the program already has it, as in a rematerialised layer, the
    compiler runs it once.
    """

    def gradients(query, key, value, seen, slope):
        attend = functools.partial(_attend, causal, window, scale, seen=seen)
        return jax.vjp(attend, query, key, value)[1](slope)

    return _folded(gradients)


def _attend(causal, window, scale, query, key, value, seen):
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=seen,
        scale=scale,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation='cudnn',
    )


def _folded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with a rule for `vmap` that makes the mapped axis a part of the batch.

    JAX's own rule for the kernel fails if only some operands are mapped, or if the mask is.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def by_runs(runs: int, are_mapped: Any, *operands: Any) -> Any:
        def fold(x: jax.Array, is_mapped: bool) -> jax.Array:
            if not is_mapped and len(x) < batch:
                return x  # one mask for all examples of all runs
            if not is_mapped:
                x = jnp.broadcast_to(x, (runs, *x.shape))
            if x.shape[1] < batch:
                x = jnp.broadcast_to(x, (runs, batch, *x.shape[2:]))
            return x.reshape(runs * batch, *x.shape[2:])

        batch = operands[0].shape[1 if are_mapped[0] else 0]
        folded = jax.tree.map(fold, operands, tuple(are_mapped))
        results = mapped(*folded)
        unfold = lambda x: x.reshape(runs, batch, *x.shape[1:])  # noqa: E731
        return jax.tree.map(unfold, results), jax.tree.map(lambda _: True, results)

    return mapped
