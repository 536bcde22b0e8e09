"""Splash attention on TPUs."""

import functools
import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from peftjax.core.masks import Mask

_LANES = 128  # of a TPU: blocks of positions are multiples of it
_BLOCK = 512


@functools.cache
def is_there() -> bool:
    """Whether this machine can compile for TPUs."""
    return importlib.util.find_spec('libtpu') is not None


def obstacle(
    query: jax.Array,
    key: jax.Array,
    mask: Mask,
    *,
    bias: jax.Array | None,
    softcap: float | None,
    dropout: Any,
) -> str | None:
    """Why splash attention cannot attend so; None if it can."""
    del softcap
    length, keys = query.shape[1], key.shape[1] - mask.prefix
    if {query.dtype.name, key.dtype.name} not in ({'bfloat16'}, {'float32'}):
        return f'query is {query.dtype} and key {key.dtype}: both must be bfloat16 or float32'
    given = {'bias': bias, 'dropout': dropout, 'mask.offset': mask.offset, 'mask.array': mask.array}
    for name, value in given.items():
        if value is not None:
            return f'{name} is given'
    if length < _LANES:
        return f'{length} queries are less than a block of {_LANES}'
    if mask.causal and length != keys:
        return f'{length} queries look back on {keys} keys, which are not theirs'
    if mask.segments is not None and mask.prefix:
        return 'a prefix is of no segment'
    batch = int(np.prod([size for _, size in _axes('data', 'fsdp')]))
    if len(query) % batch:
        return f'{len(query)} examples are split over {batch} devices'
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
    """`attend` where there is no `obstacle`, to be lowered for TPUs.

    On a mesh each device attends for its own examples, and for its own heads where the axis
    `tensor` divides them: the compiler cannot split the kernel itself.
    """
    batch, length, _, _ = query.shape
    ids = _segments(mask, batch, length, key.shape[1])
    attend = functools.partial(_attend, mask=_static(mask), softcap=softcap, interpret=interpret)
    query = (query * scale).astype(query.dtype)
    examples, heads = _axes('data', 'fsdp'), _axes('tensor')
    if key.shape[2] % int(np.prod([size for _, size in heads])):
        heads = []
    named = [tuple(name for name, _ in axes) for axes in (examples, heads)]
    if any(named):
        whole, ids_split = PartitionSpec(named[0], None, named[1]), PartitionSpec(named[0])
        attend = jax.shard_map(
            attend,
            in_specs=(whole, whole, whole, jax.tree.map(lambda _: ids_split, ids)),
            out_specs=whole,
            axis_names=set(named[0] + named[1]),
            check_vma=False,
        )
    return attend(query, key, value, ids)


def _axes(*names: str) -> list[tuple[str, int]]:
    """Axes of the mesh in force, and their sizes, over which the compiler splits arrays."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return [(name, mesh.shape[name]) for name in names if kinds.get(name) == AxisType.Auto]


def _static(mask: Mask) -> Mask:
    return Mask(mask.causal, mask.window, mask.prefix)


def _segments(mask: Mask, batch: int, length: int, keys: int) -> tuple[jax.Array, jax.Array] | None:
    """Ids of queries and of keys: a query sees keys of its own id. Filled up to whole blocks.

    Among tokens of one row, padding sees padding, so that no query sees nothing at all.
    """
    fill = -keys % _LANES
    if mask.segments is not None:
        ids = mask.segments if mask.valid is None else jnp.where(mask.valid, mask.segments, -1)
        queries = ids = ids.astype(jnp.int32)
    elif mask.valid is not None or (fill and not mask.causal):
        own = keys - mask.prefix
        ids = jnp.ones((1, own), jnp.int32) if mask.valid is None else mask.valid.astype(jnp.int32)
        queries = ids if length == own else jnp.ones((1, length), jnp.int32)
    else:
        return None
    ids = jnp.pad(ids, [(0, 0), (mask.prefix, 0)], constant_values=1)
    ids = jnp.pad(ids, [(0, 0), (0, fill)], constant_values=-2)
    queries = jnp.pad(queries, [(0, 0), (0, -length % _LANES)], constant_values=1)
    return tuple(jnp.broadcast_to(x, (batch, x.shape[1])) for x in (queries, ids))


def _attend(query, key, value, ids, *, mask: Mask, softcap: float | None, interpret: bool):
    splash = _library()
    length = query.shape[1]

    def by_head(x: jax.Array) -> jax.Array:
        filled = jnp.pad(x, [(0, 0), (0, -x.shape[1] % _LANES), (0, 0), (0, 0)])
        return jnp.moveaxis(filled, 2, 1)

    q, k, v = by_head(query), by_head(key), by_head(value)
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


def _library() -> Any:
    # Imported when a program needs it: that takes most of a second.
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
