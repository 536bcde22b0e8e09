"""C3A: a change made of circulant blocks, applied by the Fourier transform."""

import math
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.blocks import check_divides, check_positive


class Leaves(TypedDict):
    kernel: Float[jax.Array, 'blocks_out blocks_in block']


class Prepared(Leaves):
    spectrum: Complex[jax.Array, 'blocks_out blocks_in frequencies']


@described
def c3a(
    *,
    block_size: int,
    targets: paths.Targets,
    init: str = 'zeros',
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Circular convolution adaptation: `W' = W + C / in`, `C` of circulant blocks.

    For `W: [in, out]` and blocks of size `b`, one vector `w: [b]` makes block `(i, o)` of `C`:
    `C[k, j] = w[(k - j) mod b]`. A use takes the Fourier transform of the blocks of `x`,
    multiplies, and transforms back, in float32 and with no matrix of the size of `W`; the
    transforms are products with matrices `[b, F]`, `F = b / 2 + 1`: `T (2 F in + 2 F in out / b^2 +
    4 F out + 3 in + 5 out)` FLOPs in the forward pass, where a complex product or sum counts as
    two. A training step costs twice as much, and three times for the second term. At the start `w =
    0`, so that `W' = W`. It can be merged.

    Args:
      block_size: `b`, which must divide `in` and `out`.
      init: `'zeros'`, or `'xavier'`: uniform of Glorot's bound, then `W' != W`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'kernel': [*stack, out / b, in / b, b]}}`:
      `in out / b` parameters for each matrix.

    Raises:
      ValueError: a block size below 1, an unknown `init`, or, from `init`, a block size that does
        not divide a side.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.c3a(block_size=4, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['kernel'].shape
    (2, 1, 4)

    References:
      Chen et al., Parameter-Efficient Fine-Tuning via Circular Convolution, 2024
      (arXiv:2407.19342), sections 3.2 and 3.3. The division by `in` is the authors' code's.
      The backward pass of the torch library passes on a gradient by `x` that differs from the
      derivative of its forward pass (as finite differences show). Here it is the derivative, so
      layers below train differently.
    """
    check_positive(block_size=block_size)
    if init not in ('zeros', 'xavier'):
        raise ValueError(f"init {init!r} is unknown: use 'zeros' or 'xavier'")

    # Transforms as products: XLA's FFT on the CPU fails on operands that a mesh has laid out anew.
    eye, half = np.eye(block_size), np.eye(block_size // 2 + 1)
    to_spectrum = np.fft.rfft(eye).astype(np.complex64)
    from_spectrum = [
        np.fft.irfft(unit * half, n=block_size).astype(np.float32) for unit in (1.0, 1.0j)
    ]

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        inputs, outputs = matrix.shape
        check_divides(site, 'block_size', block_size, 'input', inputs)
        check_divides(site, 'block_size', block_size, 'output', outputs)
        shape = (outputs // block_size, inputs // block_size, block_size)
        bound = 0.0 if init == 'zeros' else math.sqrt(6.0 / (inputs + outputs))
        return {'kernel': jax.random.uniform(key, shape, dtype, -bound, bound)}

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        k, j = jnp.arange(block_size)[:, None], jnp.arange(block_size)[None]
        blocks = leaves['kernel'][:, :, (k - j) % block_size]
        dense = jnp.transpose(blocks, (1, 2, 0, 3)).reshape(matrix.shape)
        return matrix + dense / matrix.shape[0]

    def prepare(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Prepared:
        del matrix
        # A correlation: the kernel's transform is conjugated.
        spectrum = jnp.conj(leaves['kernel'].astype(jnp.complex64) @ to_spectrum)
        return {'kernel': leaves['kernel'], 'spectrum': spectrum}

    def apply(leaves: Prepared, use: Use) -> Float[jax.Array, 'T out']:
        tokens, inputs = use.x.shape
        blocks = use.x.astype(jnp.complex64).reshape(tokens, -1, block_size)
        product = jnp.einsum('tif,oif->tof', blocks @ to_spectrum, leaves['spectrum'])
        real, imaginary = from_spectrum
        added = (product.real @ real + product.imag @ imaginary).reshape(tokens, -1) / inputs
        return use.forward(use.x) + added.astype(use.dtype)

    return weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        prepare=prepare,
        name='c3a',
        targets=targets,
        materialize=materialize,
    )
