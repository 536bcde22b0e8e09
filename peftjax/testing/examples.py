"""Models and adapters for examples and tests."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peftjax.binding.wrap import wrap
from peftjax.core.entries import Adapter
from peftjax.core.model import Model
from peftjax.core.roles import Roles


class _MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, name='out')(nn.relu(nn.Dense(8, name='hidden')(x)))


def tiny_mlp() -> Model:
    """Two dense layers, 4 -> 8 -> 3, for examples: `apply(params, x)` with `x: [..., 4]`.

    >>> tiny_mlp().apply(tiny_mlp().params, jnp.ones((2, 4))).shape
    (2, 3)
    """
    x = jnp.ones((1, 4))
    roles = Roles(other=('x',))  # There is no padding.
    return wrap(_MLP(), _MLP().init(jax.random.key(0), x), {'x': x}, roles=roles)


def perturb(adapter: Adapter, seed: int, size: float = 0.05) -> Adapter:
    """`adapter` plus normal noise of deviation `size` in every leaf."""
    random = np.random.default_rng(seed)

    def noisy(leaf: jax.Array) -> jax.Array:
        return leaf + jnp.asarray(size * random.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(noisy, adapter)
