"""The attention core, a separate module so that methods can reach it, and other shared parts."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.masks import Mask
from peftjax.models.along_batch import along_batch
from peftjax.models.attend import attend


class AttentionCore(nn.Module):
    """Scaled dot-product attention over projected heads: softmax(q kᵀ / √H) v.

    softcap: c of c · tanh(s / c), which bounds the scores s; None for no bound.
    implementation: of `attend`; None to choose the kernel by the call and the backend.

    It has no parameters. It is a module only so that `flax.linen.intercept_methods` sees the call:
    a prefix is a longer `k` and `v` with `mask.behind(n)`, a scaled head is a changed result. The
    result depends only on the arguments, the fields and the rng 'dropout'. A method can therefore
    call it again with a longer `k`, `v`, `mask` and `bias`, under the same dropout, window and
    bounds.

    Shapes: B batch, T queries, S keys, N heads of width H, K key-value heads (N a multiple of K),
    which are never repeated in memory. The softmax is in float32 whatever the dtype.

    Example:
        >>> core, q = AttentionCore(), jnp.ones((1, 3, 4, 8))
        >>> core.apply({}, q, q[:, :, :2], q[:, :, :2]).shape  # 4 heads share 2 key-value heads
        (1, 3, 4, 8)
    """

    dropout_rate: float = 0.0
    softcap: float | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: Mask | None = None,
        deterministic: bool = True,
        bias: jax.Array | tuple[jax.Array, ...] | None = None,
        prefix_bias: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from query [B, T, N, H] to key and value [B, S, K, H]; returns [B, T, N, H].

        mask: which keys a query sees; None for all. S includes the prefix of the mask.
        bias: float, broadcastable to [B, N, T, S] with four axes; is added to the scaled (and
            bounded) scores. Or a tuple of such arrays, each for some of the keys, in their order.
        prefix_bias: for keys that a method puts in front. This call ignores it.
        """
        del prefix_bias
        rate = 0.0 if deterministic else self.dropout_rate
        return attend(
            query,
            key,
            value,
            mask,
            bias=bias,
            softcap=self.softcap,
            dropout=None if rate == 0.0 else (rate, self.make_rng('dropout')),
            implementation=self.implementation,
        )


class Branch(nn.Module):
    """The branch of a residual sublayer, before it is added to the residual: returns `output`.

    It has no parameters and computes nothing. It is a module site that shows a method the three
    tensors to which papers attach bottleneck adapters. On a mesh its output is split by examples,
    see `along_batch`.

    Example:
        >>> x = jnp.ones((1, 3, 8))
        >>> Branch().apply({}, x, 2 * x, 3 * x).shape
        (1, 3, 8)
    """

    @nn.compact
    def __call__(self, residual: jax.Array, output: jax.Array, after: jax.Array) -> jax.Array:
        """All [B, T, D].

        residual: the residual before the sublayer.
        output: the output of the sublayer, to be added to the residual.
        after: the residual after the sublayer: the sum, normalised if a norm follows it. It is
            computed only if a method reads it.
        """
        del residual, after
        return along_batch(output)


def is_token(attention_mask: jax.Array | None) -> jax.Array | None:
    """[B, S] with 1 for tokens and 0 for padding -> bool, the `valid` of a mask."""
    return None if attention_mask is None else attention_mask.astype(bool)


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


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The feed-forward nonlinearity that a checkpoint's config.json calls `name`.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f'hidden_act {name!r} is not supported: use one of {sorted(_ACTIVATIONS)}')
    return _ACTIVATIONS[name]


def _gelu_exact(x: jax.Array) -> jax.Array:
    if x.dtype != jnp.float32:  # In fewer bits, 1 + erf(x) cancels for negative x.
        return jax.nn.gelu(x, approximate=False)
    # The formula of torch. XLA's erfc needs two polynomials and an exponential instead of one
    # polynomial, and its CPU compiler evaluates them three times if a reshape follows.
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.float32(math.sqrt(0.5))))


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


# In transformers 'gelu' is the exact erf form; the tanh form has other names.
_ACTIVATIONS = {
    'gelu': _gelu_exact,
    'gelu_new': _gelu_tanh,
    'gelu_pytorch_tanh': _gelu_tanh,
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
    'swish': jax.nn.silu,
}
