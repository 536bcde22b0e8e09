"""Attention as two matrix products and a softmax, with a backward pass written by hand."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from peftjax.core.masks import Mask
from peftjax.models.chunks import cut, join

BLOCK = 256  # queries of each row whose scores are held at the same time

_HIDDEN = -0.7 * jnp.finfo(jnp.float32).max  # finite, so that a row of hidden keys is not 0/0


def attend_plainly(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    bias: jax.Array | tuple[jax.Array, ...] | None,
    scale: float,
    softcap: float | None,
    dropout: tuple[float, jax.Array] | None,
) -> jax.Array:
    """`attend` on every backend, for every argument.

    Rows of more than 256 queries attend in blocks, one after another, and each block is computed
    again in the backward pass: `B x N x 256 x S` scores are held instead of `B x N x T x S` (Rabe
    and Staats 2021, arXiv:2112.05682, section 3, who also split the keys). A single block keeps its
    probabilities.
    """
    length, keys = query.shape[1], key.shape[1] - mask.prefix
    rate, random = dropout or (0.0, None)

    def block(part: _Part) -> jax.Array:
        if isinstance(part.bias, tuple):
            # The forward pass keeps arrays that depend on nothing differentiated: here each part
            # of the bias with its zeros, as many numbers as there are scores. Behind the barrier
            # they depend on the query and the key too.
            bias, *_ = jax.lax.optimization_barrier((part.bias, part.query, key))
            part = part._replace(bias=bias)
        seen = mask.rows(part.place, part.segments, part.array, keys)
        # Each block draws its own dropout mask.
        own = None if random is None else jax.random.fold_in(random, part.number)
        return _products(scale, softcap, rate, part.query, key, value, part.bias, seen, own)

    if length <= BLOCK:
        seen = mask.dense(length, keys)
        return _products(scale, softcap, rate, query, key, value, bias, seen, random)
    queries, places = cut(query, BLOCK), cut(jnp.arange(length)[None], BLOCK)[:, 0]
    # The last block may be padded with queries, whose results are cut off.
    count = len(queries)
    parts = _Part(
        jnp.arange(count),
        places,
        queries,
        None if mask.segments is None else cut(mask.segments, BLOCK),
        _by_rows(mask.array, length, count),
        jax.tree.map(lambda part: _by_rows(part, length, count), bias),
    )
    return join(jax.lax.map(jax.checkpoint(block, prevent_cse=False), parts), length)


def softcapped(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap · tanh(x / cap)`, which bounds x; x itself if cap is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class _Part(NamedTuple):
    """A block of queries, with its part of the mask and the bias."""

    number: jax.Array
    place: jax.Array
    query: jax.Array
    segments: jax.Array | None
    array: jax.Array | None
    bias: jax.Array | tuple[jax.Array, ...] | None


def _by_rows(array: jax.Array | None, length: int, count: int) -> jax.Array | None:
    if array is None or array.shape[2] == length:
        return None if array is None else cut(array, BLOCK, axis=2)
    return jnp.broadcast_to(array, (count, *array.shape))  # the same for every query


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _products(scale, softcap, rate, query, key, value, bias, seen, random):
    """softmax(c(q kᵀ · scale) + bias) v; with a `random` key, dropout at `rate`.

    Differentiating the two products and the softmax one by one would pass over the scores twice as
    often. The backward pass is that of FlashAttention (Dao et al. 2022, arXiv:2205.14135, appendix
    B.2), except that the probabilities are kept.
    """
    return _forward(scale, softcap, rate, query, key, value, bias, seen, random)[0]


def _forward(scale, softcap, rate, query, key, value, bias, seen, random):
    q, k, v = _by_head(query, key.shape[2]), _by_head(key), _by_head(value)
    scores = softcapped(_scores(query, key, q, k) * scale, softcap)
    if bias is not None:
        scores = _plus(scores, bias)
    if seen is not None:
        scores = jnp.where(seen, scores, _HIDDEN)
    probabilities = jax.nn.softmax(scores, axis=-1)
    weights = _joined(_dropped(probabilities, rate, random), key).astype(value.dtype)
    attended = jnp.einsum('bkts,bksh->bkth', weights, v)
    return _by_position(attended, query), (query, key, value, bias, seen, random, probabilities)


def _backward(scale, softcap, rate, kept, slope):
    query, key, value, bias, seen, random, probabilities = kept
    heads = key.shape[2]
    q, k, v, g = _by_head(query, heads), _by_head(key), _by_head(value), _by_head(slope, heads)
    weights = _joined(_dropped(probabilities, rate, random), key).astype(value.dtype)
    d_value = _over_queries(weights, g)
    d_probabilities = _dropped(_scores(query, key, g, v), rate, random)
    mean = (probabilities * d_probabilities).sum(axis=-1, keepdims=True)
    d_scores = probabilities * (d_probabilities - mean)
    if seen is not None:
        # In a row that sees no key, the probabilities of hidden keys are not zero.
        d_scores = jnp.where(seen, d_scores, 0.0)
    d_bias = None if bias is None else _of_bias(d_scores, bias)
    if softcap is not None:
        bounded = jnp.tanh(_scores(query, key, q, k) * (scale / softcap))
        d_scores = d_scores * (1.0 - bounded * bounded)
    d_scores = _joined(d_scores * scale, key).astype(query.dtype)
    d_query = _product('bkts,bksh->bkth', d_scores, k)
    return (
        _by_position(d_query, query).astype(query.dtype),
        _over_queries(d_scores, q).astype(key.dtype),
        d_value.astype(value.dtype),
        d_bias,
        None,
        None,
    )


_products.defvjp(_forward, _backward)


def _product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _over_queries(scores: jax.Array, x: jax.Array) -> jax.Array:
    """scoresᵀ x of each head: [B, K, N / K * T, S] and [B, K, N / K * T, H] -> [B, S, K, H].

    A product whose first factor has fewer columns than its second took half of the time of the
    other order (2 CPU cores, S = 128, H = 32).
    """
    if x.shape[3] < scores.shape[3]:
        return jnp.moveaxis(_product('bkth,bkts->bkhs', x, scores), 3, 1)
    return jnp.moveaxis(_product('bkts,bkth->bksh', scores, x), 2, 1)


def _by_head(x: jax.Array, groups: int | None = None) -> jax.Array:
    """[B, S, K, H] -> [B, K, S, H]; with `groups` [B, T, N, H] -> [B, K, N / K * T, H].

    Heads come before positions, since matrix products are fastest in this order on CPUs. Queries
    that share a key-value head are rows of one matrix, so that the head is never repeated.
    """
    if groups is None:
        return jnp.moveaxis(x, 1, 2)
    batch, length, heads, width = x.shape
    grouped = x.reshape(batch, length, groups, heads // groups, width)
    return jnp.moveaxis(grouped, 1, 3).reshape(batch, groups, -1, width)


def _by_position(x: jax.Array, query: jax.Array) -> jax.Array:
    """[B, K, N / K * T, H] -> [B, T, N, H], like `query`."""
    batch, length, heads, width = query.shape
    return jnp.moveaxis(x.reshape(batch, heads, length, width), 1, 2)


def _scores(query: jax.Array, key: jax.Array, q: jax.Array, k: jax.Array) -> jax.Array:
    """The products of [B, K, N / K * T, H] and [B, K, S, H]: float32 [B, N, T, S]."""
    batch, length, heads, _ = query.shape
    return _product('bkth,bksh->bkts', q, k).reshape(batch, heads, length, key.shape[1])


def _joined(scores: jax.Array, key: jax.Array) -> jax.Array:
    """[B, N, T, S] -> [B, K, N / K * T, S]."""
    return scores.reshape(scores.shape[0], key.shape[2], -1, scores.shape[3])


def _plus(scores: jax.Array, bias: jax.Array | tuple[jax.Array, ...]) -> jax.Array:
    """The scores with a bias added, or each of its parts to the scores of its keys."""
    if not isinstance(bias, tuple):
        return scores + bias.astype(jnp.float32)
    before, keys = 0, scores.shape[3]
    for part in bias:
        # XLA adds the zeros on both sides as it reads the scores, and stores no padded array.
        sides = [*[(0, 0)] * 3, (before, keys - before - part.shape[3])]
        scores = scores + jnp.pad(part.astype(jnp.float32), sides)
        before += part.shape[3]
    return scores


def _split(scores: jax.Array, bias: tuple[jax.Array, ...]) -> list[jax.Array]:
    """The scores of the keys of each part of a bias."""
    ends = itertools.accumulate(part.shape[3] for part in bias[:-1])
    return jnp.split(scores, tuple(ends), axis=3)


def _of_bias(d_scores: jax.Array, bias: jax.Array | tuple[jax.Array, ...]) -> Any:
    """The gradient of a bias, or of each of its parts."""
    if not isinstance(bias, tuple):
        return _summed(d_scores, bias)
    return tuple(map(_summed, _split(d_scores, bias), bias))


def _summed(d_scores: jax.Array, bias: jax.Array) -> jax.Array:
    """The gradient of a bias, summed over the axes along which it was repeated."""
    repeated = [axis for axis, size in enumerate(bias.shape) if size != d_scores.shape[axis]]
    return d_scores.sum(axis=repeated, keepdims=True).astype(bias.dtype)


def _dropped(x: jax.Array, rate: float, random: Any) -> jax.Array:
    if random is None:
        return x
    kept = jax.random.bernoulli(random, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)
