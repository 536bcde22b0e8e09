"""Norms that several families share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class LayerNorm(nn.LayerNorm):
    """Flax's layer norm with the variance in two passes, since E[x²] - E[x]² cancels.

    Flax subtracts a float32 mean from a bfloat16 `x`: a promotion that strict mode refuses.
    """

    use_fast_variance: bool = False

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        with jax.numpy_dtype_promotion('standard'):
            return super().__call__(x, mask=mask)


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
