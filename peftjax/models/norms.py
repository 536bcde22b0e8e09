"""Norms that several families share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · scale over the last axis, in float32 whatever the dtype of x.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    epsilon: float
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, x.shape[-1:], self.param_dtype)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
        return (wide * inverse * scale).astype(self.dtype)
