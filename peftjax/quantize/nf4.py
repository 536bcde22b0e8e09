"""Four bits a number: the quantiles of a normal distribution, with a scale for each block."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt8

from peftjax.core.quantized import Arrays
from peftjax.quantize.blocks import nibbles, spread

_GROUP = 256  # scales that share a scale of their own

# fmt: off
VALUES = np.asarray([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
], np.float32)
# fmt: on
"""Zero, 7 quantiles below and 8 above, as QLoRA's appendix E lists them."""


def _dynamic_tree() -> Float32[np.ndarray, '256']:
    """The 256 values of a signed byte with a dynamic exponent: more digits the larger it is."""
    values = [np.zeros(1), np.ones(1)]
    for exponent in range(7):
        bounds = np.linspace(0.1, 1.0, 2**exponent + 1)
        means = 10.0 ** (exponent - 6) * (bounds[:-1] + bounds[1:]) / 2.0
        values += [means, -means]
    return np.sort(np.concatenate(values)).astype(np.float32)


SCALES = _dynamic_tree()


@dataclasses.dataclass(frozen=True)
class NF4:
    r"""NormalFloat4 of QLoRA: weight :math:`i` is :math:`q_{c_i} m_b`, of block :math:`b`.

    :math:`q` are 16 values, equally likely under a normal distribution, and :math:`m_b` is the
    largest magnitude among the `block` weights that follow each other along the inputs. With
    `double`, the :math:`m_b` less their mean are bytes with a dynamic exponent, scaled by the
    largest of 256: 4.127 bits a weight, 4.5 without.

    Args:
      block: weights that share a scale. double: quantise the scales too.

    >>> nf4, matrix = NF4(), jnp.linspace(-1.0, 1.0, 128).reshape(2, 64)
    >>> {name: each.shape for name, each in sorted(nf4.pack(matrix).items())}
    {'codes': (2, 32), 'mean': (), 'scale': (2, 1), 'scale_scale': (1,)}

    Source: Dettmers et al., QLoRA, 2023 (arXiv:2305.14314), section 3 and appendix E; the bytes of
    double quantisation: Dettmers et al., 8-bit Optimizers, 2021 (arXiv:2110.02861), section 2.1.
    Values and codes are those of bitsandbytes. Where inputs are no multiple of the block, a row
    ends with a short one, where bitsandbytes begins the next row in the same block.
    """

    block: int = 64
    double: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.block, int) or self.block < 2 or self.block % 2:
            raise ValueError(f'block must be an even number of at least 2, got {self.block!r}')

    @property
    def name(self) -> str:
        return 'nf4'

    def pack(self, matrix: Float[jax.Array, 'rows columns']) -> dict[str, jax.Array]:
        rows, columns = matrix.shape
        count = -(-columns // self.block)
        padded = jnp.pad(
            matrix.astype(jnp.float32), ((0, 0), (0, count * self.block - columns))
        ).reshape(rows, count, self.block)
        scale = jnp.max(jnp.abs(padded), axis=2)
        normal = padded / jnp.where(scale == 0.0, 1.0, scale)[..., None]
        arrays = {'codes': joined(nearest(normal).reshape(rows, -1)), 'scale': scale}
        return self._scales_packed(arrays) if self.double else arrays

    def unpack(self, arrays: Arrays) -> Float32[jax.Array, 'rows columns']:
        return value(nibbles(arrays['codes'], high_first=True)) * self.steps(arrays)

    def steps(self, arrays: Arrays) -> Float32[jax.Array, 'rows columns']:
        """What the value of each code is multiplied by: `[rows, columns]`, those of `pack`."""
        return spread(_scales(arrays) if self.double else arrays['scale'], self.block)

    def _scales_packed(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        scale = arrays['scale']
        mean = jnp.mean(scale)
        flat = (scale - mean).reshape(-1)
        groups = -(-flat.size // _GROUP)
        grouped = jnp.pad(flat, (0, groups * _GROUP - flat.size)).reshape(groups, _GROUP)
        largest = jnp.max(jnp.abs(grouped), axis=1)
        normal = grouped / jnp.where(largest == 0.0, 1.0, largest)[:, None]
        codes = jnp.searchsorted((SCALES[1:] + SCALES[:-1]) / 2, normal.reshape(-1))
        codes = codes[: flat.size].astype(jnp.uint8).reshape(scale.shape)
        return {**arrays, 'scale': codes, 'scale_scale': largest, 'mean': mean}


def _scales(arrays: Arrays) -> Float32[jax.Array, 'rows blocks']:
    codes = arrays['scale']
    place = jax.lax.broadcasted_iota(jnp.int32, codes.shape, 0) * codes.shape[1]
    place = place + jax.lax.broadcasted_iota(jnp.int32, codes.shape, 1)
    largest = arrays['scale_scale'][place // _GROUP]
    return jnp.asarray(SCALES)[codes.astype(jnp.int32)] * largest + arrays['mean']


def nearest(normal: Float32[jax.Array, ' *shape']) -> UInt8[jax.Array, ' *shape']:
    """The code whose value is nearest."""
    middles = (VALUES[1:] + VALUES[:-1]) / 2
    return jnp.sum(
        normal[..., None] > jnp.expand_dims(middles, range(normal.ndim)), axis=-1, dtype=jnp.uint8
    )


def joined(codes: UInt8[jax.Array, 'rows columns']) -> UInt8[jax.Array, 'rows columns//2']:
    """Two codes a byte, the first one high: `[rows, columns / 2]`."""
    pairs = codes.reshape(codes.shape[0], -1, 2)
    return pairs[..., 0] << 4 | pairs[..., 1]


def value(codes: UInt8[jax.Array, ' *shape']) -> Float32[jax.Array, ' *shape']:
    """The value of each code, by comparing bits: a processor of vectors has no fast table."""

    def chosen(values: list[float], bit: int) -> jax.Array:
        if bit < 0:
            return jnp.float32(values[0])
        half = len(values) // 2
        return jnp.where(
            (codes >> bit) & 1 == 1, chosen(values[half:], bit - 1), chosen(values[:half], bit - 1)
        )

    return chosen(VALUES.tolist(), 3)
