"""Norms that several families share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class LayerNorm(nn.Module):
    """(x - mean(x)) / √(var(x) + ε) · scale + bias over the last axis, in float32 in any dtype.

    The variance is computed in two passes: the fast one, E[x²] - E[x]², cancels, and two passes
    cost nothing once fused. Flax's own layer takes a float32 mean from a bfloat16 `x`, which strict
    promotion refuses.

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    epsilon: float
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, last = x.shape[-1:], range(x.ndim - 1)
        scale = self.param('scale', nn.initializers.ones, shape, self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros, shape, self.param_dtype)
        scale, bias = (jnp.expand_dims(each.astype(jnp.float32), last) for each in (scale, bias))
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normal = centred * (jax.lax.rsqrt(variance + self.epsilon) * scale)
        return (normal + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · (offset + scale) over the last axis, in float32 whatever the dtype.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    epsilon: float
    dtype: DTypeLike
    param_dtype: DTypeLike
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        neutral = nn.initializers.constant(1.0 - self.offset)
        scale = self.param('scale', neutral, x.shape[-1:], self.param_dtype)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        scale = scale.astype(jnp.float32)
        if self.offset:
            scale = scale + self.offset
        scale = jnp.expand_dims(scale, range(x.ndim - 1))
        return (wide * inverse * scale).astype(self.dtype)
