"""The plain block formats of GGUF files: 32 weights along the inputs share a scale in float16.

Codes and scales are those of the file, so that what is computed is what llama.cpp stores, to the
bit. Source of the layouts: ggml, https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float16, Float32, UInt8

from peftjax.core.quantized import Arrays
from peftjax.core.shapes import HostArray
from peftjax.quantize.blocks import spread

BLOCK = 32


@dataclasses.dataclass(frozen=True)
class Q8_0:
    r"""Eight bits a number: :math:`w = d c`, :math:`d = \max|w| / 127`. 8.5 bits a weight.

    >>> arrays = Q8_0().pack(jnp.linspace(-1.0, 1.0, 64).reshape(2, 32))
    >>> arrays['codes'].shape, str(arrays['scale'].dtype)
    ((2, 32), 'float16')
    """

    @property
    def name(self) -> str:
        return 'q8_0'

    def pack(self, matrix: Float[jax.Array, 'rows columns']) -> dict[str, jax.Array]:
        blocks = _blocks(matrix)
        step = jnp.max(jnp.abs(blocks), axis=2) / 127.0
        codes = jnp.trunc(blocks * _inverse(step) + jnp.copysign(0.5, blocks))
        return {
            'codes': codes.astype(jnp.int8).reshape(matrix.shape[0], -1),
            'scale': step.astype(jnp.float16),
        }

    def unpack(self, arrays: Arrays) -> Float32[jax.Array, 'rows columns']:
        return arrays['codes'].astype(jnp.float32) * _spread(arrays['scale'])

    def split(self, raw: UInt8[np.ndarray, 'rows bytes']) -> dict[str, np.ndarray]:
        """The arrays of a file's bytes, uint8 `[rows, bytes]`."""
        blocks = raw.reshape(raw.shape[0], -1, 2 + BLOCK)
        return {
            'codes': _joined(blocks[..., 2:]).view(np.int8),
            'scale': _halves(blocks[..., :2]),
        }


@dataclasses.dataclass(frozen=True)
class Q4_0:
    r"""Four bits a number: :math:`w = d (c - 8)`, the largest :math:`-8 d`. 4.5 bits a weight.

    >>> arrays = Q4_0().pack(jnp.linspace(-1.0, 1.0, 64).reshape(2, 32))
    >>> arrays['codes'].shape, str(arrays['scale'].dtype)
    ((2, 16), 'float16')
    """

    @property
    def name(self) -> str:
        return 'q4_0'

    def pack(self, matrix: Float[jax.Array, 'rows columns']) -> dict[str, jax.Array]:
        blocks = _blocks(matrix)
        place = jnp.argmax(jnp.abs(blocks), axis=2, keepdims=True)
        step = jnp.take_along_axis(blocks, place, axis=2)[..., 0] / -8.0
        codes = jnp.trunc(blocks * _inverse(step) + 8.5)
        return {'codes': _pairs(codes), 'scale': step.astype(jnp.float16)}

    def unpack(self, arrays: Arrays) -> Float32[jax.Array, 'rows columns']:
        return (_codes(arrays) - 8.0) * _spread(arrays['scale'])

    def split(self, raw: UInt8[np.ndarray, 'rows bytes']) -> dict[str, np.ndarray]:
        """The arrays of a file's bytes, uint8 `[rows, bytes]`."""
        blocks = raw.reshape(raw.shape[0], -1, 2 + BLOCK // 2)
        return {'codes': _joined(blocks[..., 2:]), 'scale': _halves(blocks[..., :2])}


@dataclasses.dataclass(frozen=True)
class Q4_1:
    r"""Four bits a number: :math:`w = d c + m`, :math:`m` the least. 5 bits a weight.

    >>> arrays = Q4_1().pack(jnp.linspace(-1.0, 1.0, 64).reshape(2, 32))
    >>> arrays['codes'].shape, str(arrays['scale'].dtype)
    ((2, 16), 'float16')
    """

    @property
    def name(self) -> str:
        return 'q4_1'

    def pack(self, matrix: Float[jax.Array, 'rows columns']) -> dict[str, jax.Array]:
        blocks = _blocks(matrix)
        least = jnp.min(blocks, axis=2)
        step = (jnp.max(blocks, axis=2) - least) / 15.0
        codes = jnp.trunc((blocks - least[..., None]) * _inverse(step) + 0.5)
        scales = {'scale': step.astype(jnp.float16), 'least': least.astype(jnp.float16)}
        return {'codes': _pairs(codes), **scales}

    def unpack(self, arrays: Arrays) -> Float32[jax.Array, 'rows columns']:
        return _codes(arrays) * _spread(arrays['scale']) + _spread(arrays['least'])

    def split(self, raw: UInt8[np.ndarray, 'rows bytes']) -> dict[str, np.ndarray]:
        """The arrays of a file's bytes, uint8 `[rows, bytes]`."""
        blocks = raw.reshape(raw.shape[0], -1, 4 + BLOCK // 2)
        scales = {'scale': _halves(blocks[..., :2]), 'least': _halves(blocks[..., 2:4])}
        return {'codes': _joined(blocks[..., 4:]), **scales}


def _blocks(matrix: Float[jax.Array, 'rows columns']) -> Float32[jax.Array, 'rows blocks 32']:
    """`[rows, blocks, 32]`, zeros behind the last column."""
    rows, columns = matrix.shape
    count = -(-columns // BLOCK)
    padded = jnp.pad(matrix.astype(jnp.float32), ((0, 0), (0, count * BLOCK - columns)))
    return padded.reshape(rows, count, BLOCK)


def _inverse(step: Float[jax.Array, 'rows blocks']) -> Float[jax.Array, 'rows blocks 1']:
    return jnp.where(step == 0.0, 0.0, 1.0 / jnp.where(step == 0.0, 1.0, step))[..., None]


def _pairs(codes: Float[jax.Array, 'rows blocks 32']) -> UInt8[jax.Array, 'rows blocks*16']:
    """Of each block a byte for its weights i and i + 16, the first in the low bits."""
    codes = jnp.clip(codes, 0, 15).astype(jnp.uint8)
    low, high = jnp.split(codes, 2, axis=2)
    return (low | high << 4).reshape(codes.shape[0], -1)


def _codes(arrays: Arrays) -> Float32[jax.Array, 'rows columns']:
    codes = arrays['codes']
    blocks = codes.reshape(codes.shape[0], -1, BLOCK // 2)
    both = jnp.concatenate([blocks & 0xF, blocks >> 4], axis=2)
    return both.reshape(codes.shape[0], -1).astype(jnp.float32)


def _spread(scale: Float16[HostArray, 'rows blocks']) -> Float32[jax.Array, 'rows blocks*32']:
    return spread(scale.astype(jnp.float32), BLOCK)


def _joined(
    blocks: UInt8[np.ndarray, 'rows blocks bytes'],
) -> UInt8[np.ndarray, 'rows blocks*bytes']:
    return np.ascontiguousarray(blocks).reshape(blocks.shape[0], -1)


def _halves(blocks: UInt8[np.ndarray, 'rows blocks 2']) -> Float16[np.ndarray, 'rows blocks']:
    return np.ascontiguousarray(blocks).view(np.float16)[..., 0]
