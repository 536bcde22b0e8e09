"""FourierFT: some trained entries of the change's two-dimensional spectrum."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Integer, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.layout import Layout
from peftjax.core.promotion import widened
from peftjax.core.shapes import HostArray
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.blocks import check_positive
from peftjax.methods.draws import distinct
from peftjax.methods.torch_draws import permutation


class Trained(TypedDict):
    spectrum: Float[jax.Array, ' entries']


class Leaves(Trained):
    positions: Integer[HostArray, ' entries']
    scale: NotRequired[Float[jax.Array, '']]


@described
def fourierft(
    *,
    n_frequency: int,
    targets: paths.Targets,
    scaling: float = 300.0,
    seed: int = 0,
    draws: str = 'numpy',
    positions: Mapping[str, Any] | None = None,
    init: str = 'normal',
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Fourier fine-tuning: `W' = W + s Re(IDFT2(F))`, `F` zero except at `n` places.

    For `W: [in, out]` and trained coefficients `c: [n]` at fixed random entries of `F: [in, out]`.
    The change must be formed as a matrix: this costs about `5 in out log2(in out)` FLOPs in
    float32, and its use `2 T in out + T out`, in the forward pass. A training step costs the first
    twice and the second three times. The gradient is dense too. At the start `c ~ N(0, 1)`, so that
    `W' != W`, as in the paper. It can be merged.

    Args:
      n_frequency: `n`.
      scaling: `s`.
      seed: of the places, which are in `frozen.own`. Every matrix has its own places, by its path.
      draws: `'numpy'`, or `'torch'` for the places that Hugging Face's peft draws from the seed,
        the same for all matrices of one shape.
      positions: `{leaf path: [*stack, n]}` places to use instead, `row * out + column`.
      init: `'normal'`, or `'zeros'` for `W' = W` at the start.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'spectrum': [*stack, n]}}`: `n` parameters for each
      matrix.

    Raises:
      ValueError: fewer than one frequency, an unknown `init` or `draws`, or, from `init`, more
        frequencies than the matrix has entries.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.fourierft(n_frequency=5, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['spectrum'].shape
    (5,)

    References:
      Gao et al., Parameter-Efficient Fine-Tuning with Discrete Fourier Transform, 2024
      (arXiv:2405.03003), equations 2 to 4. The paper gives all layers the same places.
    """
    check_positive(n_frequency=n_frequency)
    if init not in ('normal', 'zeros'):
        raise ValueError(f"init {init!r} is unknown: use 'normal' or 'zeros'")
    if draws not in ('numpy', 'torch'):
        raise ValueError(f"draws {draws!r} is unknown: use 'numpy' or 'torch'")

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Trained:
        if n_frequency > matrix.size:
            raise ValueError(
                f'n_frequency {n_frequency} is more than the {matrix.size} entries of '
                f'{site.path!r} {site.shape} {site.dtype}; write at most '
                f'n_frequency={matrix.size}'
            )
        drawn = jax.random.normal(key, (n_frequency,), dtype)
        return {'spectrum': drawn if init == 'normal' else jnp.zeros_like(drawn)}

    def own(site: WeightSite) -> dict[str, Any]:
        layout = site.layout
        assert layout is not None
        return {'positions': places(site.path, layout), 'scale': scaling}

    def places(path: str, layout: Layout) -> Any:
        size = layout.inputs * layout.outputs
        if positions is not None:
            return positions[path]
        if draws == 'torch':
            # It keeps [out, in].
            column, row = np.divmod(permutation(seed, size, n_frequency), layout.inputs)
            drawn = (row * layout.outputs + column).astype(np.int32)
            return np.broadcast_to(drawn, (*layout.stack_shape, n_frequency))
        return distinct(seed, path, n_frequency, size, layout.stack_shape)

    return weightwise(
        init_weight,
        _merge,
        _apply,
        own=own,
        name='fourierft',
        targets=targets,
        materialize=materialize,
        dense=True,
    )


def _merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
    return jnp.add(*widened((matrix, _delta(leaves, matrix.shape))))


def _apply(leaves: Leaves, use: Use) -> Float[jax.Array, '...']:
    return use.forward(use.x) + use.product(use.x, _delta(leaves, use.weight().shape))


def _delta(leaves: Leaves, shape: tuple[int, ...]) -> Float32[jax.Array, '{shape[0]} {shape[1]}']:
    """`s Re(IDFT2(F))`."""
    spectrum = jnp.zeros(shape[0] * shape[1], jnp.float32)
    spectrum = spectrum.at[leaves['positions']].set(leaves['spectrum'].astype(jnp.float32))
    # Barriers on flat arrays, forward and backward: XLA's FFT on the CPU fails on operands whose
    # axes a mesh, or a product that follows, has laid out in another order.
    spectrum = jax.lax.optimization_barrier(spectrum).reshape(shape)
    flat = jnp.fft.ifft2(spectrum).real.reshape(-1)
    return leaves['scale'] * jax.lax.optimization_barrier(flat).reshape(shape)
