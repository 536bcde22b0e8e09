"""The attention core, a module of its own so that methods can reach it, and the masks it takes."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.along_batch import along_batch
from peftjax.models.chunks import cut, join

BLOCK = 256  # queries of each row whose scores are there at the same time


class AttentionCore(nn.Module):
    """Scaled dot-product attention over projected heads: softmax(q kᵀ / √H) v.

    softcap: c of c · tanh(s / c), which bounds the scores s; None for scores as they are.

    It owns no parameters. It is a module only so that `flax.linen.intercept_methods` sees the call:
    a prefix is a longer `k`, `v` and `mask`, a scaled head a changed result. Every mask therefore
    arrives as an argument that spells out all S keys; nothing is implied by the positions of q.

    Shapes: B batch, T queries, S keys, N heads of width H, K key-value heads (N a multiple of K),
    which are never repeated in memory. The softmax is in float32 whatever the dtype.

    Longer rows attend in blocks of at most 256 queries, one after another, and again in the
    backward pass: `B x N x 256 x S` scores are held in place of `B x N x T x S` (Rabe and Staats
    2021, arXiv:2112.05682, section 3, who also cut the keys).

    Example:
        >>> core, q = AttentionCore(), jnp.ones((1, 3, 4, 8))
        >>> core.apply({}, q, q[:, :, :2], q[:, :, :2]).shape  # 4 heads share 2 key-value heads
        (1, 3, 4, 8)
    """

    dropout_rate: float = 0.0
    softcap: float | None = None

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
        deterministic: bool = True,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from query [B, T, N, H] to key and value [B, S, K, H]; returns [B, T, N, H].

        mask: bool, broadcastable to [B, N, T, S] with S spelled out; True where a query may look.
        A query that may look nowhere gets the mean of all values: finite, and of no consequence.
        bias: float, likewise, added to the scaled (and bounded) scores.
        """
        rate = 0.0 if deterministic else self.dropout_rate
        drop = None if rate == 0.0 else (rate, self.make_rng('dropout'))
        length = query.shape[1]
        if length <= BLOCK:
            return _attention(query, key, value, mask, bias, self.softcap, drop)

        def attend(part: _Part) -> jax.Array:
            # Each block has masks of dropout of its own.
            own = drop and (drop[0], jax.random.fold_in(drop[1], part.number))
            return _attention(part.query, key, value, part.mask, part.bias, self.softcap, own)

        def rows(array: jax.Array | None, count: int) -> jax.Array | None:
            if array is None or array.shape[2] == length:
                return None if array is None else cut(array, BLOCK, axis=2)
            return jnp.broadcast_to(array, (count, *array.shape))  # the same for every query

        blocks = cut(query, BLOCK)
        count = blocks.shape[0]
        parts = _Part(jnp.arange(count), blocks, rows(mask, count), rows(bias, count))
        return join(jax.lax.map(jax.checkpoint(attend, prevent_cse=False), parts), length)


class _Part(NamedTuple):
    """A block of queries, and what belongs to it."""

    number: jax.Array
    query: jax.Array
    mask: jax.Array | None
    bias: jax.Array | None


class Branch(nn.Module):
    """The branch of a residual sublayer, before it is added to the stream: returns `output`.

    It owns no parameters and computes nothing. As a module site it shows a method what the papers
    on bottleneck adapters speak of. On a mesh its output is split by examples, see `along_batch`.

    Example:
        >>> x = jnp.ones((1, 3, 8))
        >>> Branch().apply({}, x, 2 * x, 3 * x).shape
        (1, 3, 8)
    """

    @nn.compact
    def __call__(self, stream: jax.Array, output: jax.Array, after: jax.Array) -> jax.Array:
        """All [B, T, D].

        stream: the residual stream before the sublayer.
        output: what the sublayer is about to add to it.
        after: what would leave the sublayer: the sum, through the norm behind it if there is one.
            Computed only where a method reads it.
        """
        del stream, after
        return along_batch(output)


def _attention(query, key, value, mask, bias, softcap, drop):
    if softcap is None and drop is None:
        with jax.numpy_dtype_promotion('standard'):  # JAX's own function widens bfloat16 scores.
            return jax.nn.dot_product_attention(query, key, value, bias, mask)
    # The fused function has neither dropout on probabilities, which BERT was trained with, nor
    # bounded scores.
    batch, length, heads, width = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, width)
    scores = jnp.einsum('btkgh,bskh->bkgts', grouped, key, preferred_element_type=jnp.float32)
    scores = softcapped(scores * width**-0.5, softcap)

    def by_group(array: jax.Array) -> jax.Array:
        # [B, N, T, S] -> [B, K, G, T, S]; without a head axis, that axis stays at one.
        groups = (1, 1) if array.shape[1] == 1 else grouped.shape[2:4]
        return array.reshape(array.shape[0], *groups, *array.shape[2:])

    if bias is not None:
        scores = scores + by_group(bias).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(by_group(mask), scores, -0.7 * jnp.finfo(jnp.float32).max)
    probabilities = jax.nn.softmax(scores, axis=-1)
    if drop is not None:
        rate, dropout_key = drop
        kept = jax.random.bernoulli(dropout_key, 1.0 - rate, probabilities.shape)
        probabilities = jnp.where(kept, probabilities / (1.0 - rate), 0.0)
    attended = jnp.einsum('bkgts,bskh->btkgh', probabilities.astype(value.dtype), value)
    return attended.reshape(query.shape)


def padding_mask(attention_mask: jax.Array) -> jax.Array:
    """[B, S] of ones (tokens) and zeros (padding) -> bool [B, 1, 1, S]."""
    return attention_mask.astype(bool)[:, None, None, :]


def causal_mask(length: int, window: int | None = None) -> jax.Array:
    """bool [1, 1, T, T]: a query sees itself and what came before, at most `window` keys in all."""
    query, key = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
    mask = key <= query
    if window is not None:
        mask = mask & (key > query - window)
    return mask[None, None]


def segment_mask(segment_ids: jax.Array) -> jax.Array:
    """[B, T] ids of packed sequences -> bool [B, 1, T, T]: attention stays inside a sequence."""
    return (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]


def segment_positions(segment_ids: jax.Array) -> jax.Array:
    """[B, T] ids of packed sequences -> int32 [B, T], counting from 0 at each change of id.

    Example:
        >>> segment_positions(jnp.array([[1, 1, 1, 2, 2, 0]]))
        Array([[0, 1, 2, 0, 1, 0]], dtype=int32)
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :]
    first = jnp.ones_like(segment_ids[:, :1], dtype=bool)
    starts = jnp.concatenate([first, segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, heads * H] -> [B, T, heads, H]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def merge_heads(x: jax.Array) -> jax.Array:
    """[B, T, N, H] -> [B, T, N * H]."""
    return x.reshape(*x.shape[:-2], -1)


def check_token_inputs(input_ids: jax.Array, **others: jax.Array | None) -> None:
    """Raises ValueError unless input_ids is an integer [B, T] and the others [B, T] or [1, T]."""
    if input_ids.ndim != 2 or not jnp.issubdtype(input_ids.dtype, jnp.integer):
        raise ValueError(
            f'input_ids must be integers [batch, length], got {input_ids.dtype}{input_ids.shape}'
        )
    batch, length = input_ids.shape
    for name, value in others.items():
        if value is not None and value.shape not in ((batch, length), (1, length)):
            raise ValueError(
                f'{name} must be [{batch}, {length}] like input_ids, got {tuple(value.shape)}'
            )


def softcapped(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap · tanh(x / cap)`, which bounds x; x itself where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The feed-forward nonlinearity that a checkpoint's config.json calls `name`.

    Raises:
        ValueError: on a name outside the table, listing the table.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f'hidden_act {name!r} is not supported: use one of {sorted(_ACTIVATIONS)}')
    return _ACTIVATIONS[name]


def _gelu_exact(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


# In transformers 'gelu' is the exact erf form; the tanh form has names of its own.
_ACTIVATIONS = {
    'gelu': _gelu_exact,
    'gelu_new': _gelu_tanh,
    'gelu_pytorch_tanh': _gelu_tanh,
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
    'swish': jax.nn.silu,
}
