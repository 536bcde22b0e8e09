"""Eight bits a number, one scale for each output."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from peftjax.core.quantized import Arrays


@dataclasses.dataclass(frozen=True)
class Int8:
    r"""Whole numbers of eight bits: row :math:`w` is :math:`s c`, with :math:`s = \max|w| / 127`.

    8 bits a weight, and 32 for each output. The rounding error is at most :math:`s / 2`.

    >>> int8, matrix = Int8(), jnp.asarray([[1.0, -0.5], [0.25, 127.0]])
    >>> int8.pack(matrix)['codes'].tolist()
    [[127, -64], [0, 127]]

    Source: Dettmers et al., LLM.int8(), 2022 (arXiv:2208.07339), section 2 (vector-wise scales of
    the weights). Their activations are quantised as well and outliers are not; here products are
    computed in the model's own dtype.
    """

    @property
    def name(self) -> str:
        return 'int8'

    def pack(self, matrix: Float[jax.Array, 'rows columns']) -> dict[str, jax.Array]:
        matrix = matrix.astype(jnp.float32)
        scale = jnp.max(jnp.abs(matrix), axis=1, keepdims=True) / 127.0
        codes = jnp.round(matrix / jnp.where(scale == 0.0, 1.0, scale))
        return {'codes': codes.astype(jnp.int8), 'scale': scale}

    def unpack(self, arrays: Arrays) -> Float32[jax.Array, 'rows columns']:
        return arrays['codes'].astype(jnp.float32) * arrays['scale']
