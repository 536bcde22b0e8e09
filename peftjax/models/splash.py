"""Splash attention on TPUs."""

import functools
import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.masks import Mask

_LANES = 128  # of a TPU: blocks of positions are multiples of it
_BLOCK = 512  # positions that are computed at the same time
_PADDING = jnp.iinfo(jnp.int32).min  # never the id of a segment


@functools.cache
def is_there() -> bool:
    """Whether this machine can compile for TPUs."""
    return importlib.util.find_spec('libtpu') is not None


def obstacle(
    query: jax.Array,
    key: jax.Array,
    mask: Mask,
    *,
    bias: jax.Array | tuple[jax.Array, ...] | None,
    softcap: float | None,
    dropout: Any,
) -> str | None:
    """The reason why splash attention cannot compute this call; None if it can."""
    del softcap
    length, keys = query.shape[1], key.shape[1] - mask.prefix
    if {query.dtype.name, key.dtype.name} not in ({'bfloat16'}, {'float32'}):
        return f'query is {query.dtype} and key {key.dtype}: both must be bfloat16 or float32'
    given = {'bias': bias, 'dropout': dropout, 'mask.offset': mask.offset, 'mask.array': mask.array}
    for name, value in given.items():
        if value is not None:
            return f'{name} is given'
    if length < _LANES:
        return f'{length} queries are fewer than a block of {_LANES}'
    if mask.causal and length != keys:
        return f'a causal mask needs as many keys as queries, not {length} queries and {keys} keys'
    if mask.segments is not None and mask.prefix:
        return 'the mask has a prefix and segments'
    return None


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float | None,
    interpret: bool = False,
) -> jax.Array:
    """`attend` by splash attention, for calls without an `obstacle`; to be lowered for TPUs."""
    batch, length = query.shape[:2]
    splash = _library()
    ids = _segments(mask, batch, length, key.shape[1])
    q, k, v = _by_head((query * scale).astype(query.dtype)), _by_head(key), _by_head(value)
    rows, columns = (
        next(size for size in range(_BLOCK, 0, -_LANES) if x.shape[2] % size == 0) for x in (q, k)
    )
    kernel = splash.make_splash_mha(
        _layout(mask, q.shape[2], k.shape[2], q.shape[1]),
        block_sizes=splash.BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            block_q_dq=rows,
            block_kv_dq=columns,
        ),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = None if ids is None else splash.SegmentIds(*ids)
    attended = jax.vmap(kernel)(q, k, v, segments)
    return jnp.moveaxis(attended, 1, 2)[:, :length].astype(query.dtype)


def _by_head(x: jax.Array) -> jax.Array:
    """[B, T, N, H] -> [B, N, T, H], padded with zeros to whole blocks."""
    filled = jnp.pad(x, [(0, 0), (0, -x.shape[1] % _LANES), (0, 0), (0, 0)])
    return jnp.moveaxis(filled, 2, 1)


def _segments(mask: Mask, batch: int, length: int, keys: int) -> tuple[jax.Array, jax.Array] | None:
    """Ids of queries and of keys, padded to whole blocks: a query sees the keys with its id.

    The kernel hides keys by a finite score, so a query that sees no key gets finite numbers.
    """
    fill = -keys % _LANES
    if mask.segments is not None:
        queries = mask.segments.astype(jnp.int32)
        ids = queries if mask.valid is None else jnp.where(mask.valid, queries, _PADDING)
    elif mask.valid is not None or (fill and not mask.causal):
        queries = jnp.ones((1, length), jnp.int32)
        ids = jnp.ones((1, keys - mask.prefix), jnp.int32)
        ids = ids if mask.valid is None else jnp.where(mask.valid, ids, _PADDING)
    else:
        return None
    ids = jnp.pad(ids, [(0, 0), (mask.prefix, 0)], constant_values=1)
    ids = jnp.pad(ids, [(0, 0), (0, fill)], constant_values=_PADDING)
    queries = jnp.pad(queries, [(0, 0), (0, -length % _LANES)], constant_values=1)
    whole = lambda x: jnp.broadcast_to(x, (batch, x.shape[1]))  # noqa: E731
    return whole(queries), whole(ids)


def _library() -> Any:
    # Imported only when needed: it takes most of a second.
    return importlib.import_module('jax.experimental.pallas.ops.tpu.splash_attention')


def _layout(mask: Mask, rows: int, columns: int, heads: int) -> Any:
    masks, shape = _library(), (rows, columns)
    if not mask.causal:
        layout = masks.FullMask(shape)
    elif mask.window is None:
        layout = masks.CausalMask(shape, offset=mask.prefix)
    elif not mask.prefix:
        layout = masks.LocalMask(shape, (mask.window - 1, 0), offset=0)
    else:
        slot = np.arange(columns)[None] - mask.prefix
        place = np.arange(rows)[:, None]
        near = (slot <= place) & (slot > place - mask.window)
        layout = masks.NumpyMask(near | (slot < 0))
    return masks.MultiHeadMask([layout] * heads)
