"""HRA: a chain of trained Householder reflections on the input."""

import math
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.blocks import check_positive


class Leaves(TypedDict):
    u: Float[jax.Array, 'in rank']


@described
def hra(
    *,
    rank: int,
    targets: paths.Targets,
    gram_schmidt: bool = False,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Householder reflection adaptation: `W' = H_r ... H_1 W`, `H_i = I - 2 u_i u_i^T / |u_i|^2`.

    The vectors `u_i` are the columns of `U: [in, r]`, for `W: [in, out]`. A use reflects the input,
    `x H_r ... H_1`, one vector after the other: `4 T r in + 6 r in` more FLOPs in the forward pass,
    `13 T r in` in a step, and no matrix of the size of `W`. With `gram_schmidt` the vectors are
    made orthonormal first, so that the product is `I - 2 Q Q^T`. At the start the vectors come in
    equal pairs, whose reflections cancel, so that `W' = W`. With `gram_schmidt` each vector is
    drawn separately, and `W' != W`. It can be merged.

    Args:
      rank: `r`, the number of reflections; even unless `gram_schmidt`.
      gram_schmidt: reflect along the orthonormalised vectors.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's dtype.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'u': [*stack, in, r]}}`: `r in` parameters.

    Raises:
      ValueError: a rank below 1, or an odd one without `gram_schmidt`; from `init`, a rank above
        `in`.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.hra(rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['u'].shape
    (4, 2)

    References:
      Yuan et al., Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder
      Reflection Adaptation, 2024 (arXiv:2405.17484), equations 3 and 6. The regulariser that draws
      the vectors towards orthogonality is left to the loss. `gram_schmidt`, the limit of this
      regulariser, is computed by QR, which spans the same space as Gram-Schmidt.
    """
    check_positive(rank=rank)
    if rank % 2 and not gram_schmidt:
        raise ValueError(
            f'rank {rank} is odd, but the reflections start in pairs that cancel; write '
            f'rank={rank + 1}, or gram_schmidt=True'
        )

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        inputs = matrix.shape[0]
        if rank > inputs:
            raise ValueError(
                f'rank {rank} is larger than the input size {inputs} of {site.path!r} {site.shape} '
                f'{site.dtype}; write at most rank={inputs}'
            )
        count, bound = rank if gram_schmidt else rank // 2, 1.0 / math.sqrt(inputs)
        drawn = jax.random.uniform(key, (inputs, count), dtype, -bound, bound)
        return {'u': drawn if gram_schmidt else jnp.repeat(drawn, 2, axis=1)}

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        for unit in _units(leaves['u'], gram_schmidt).T:
            matrix = matrix - 2 * jnp.outer(unit, unit @ matrix)
        return matrix

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, 'T out']:
        x, units = use.x, _units(leaves['u'], gram_schmidt).astype(use.dtype)
        for unit in units.T[::-1]:
            x = x - jnp.outer(x @ (2 * unit), unit)
        return use.forward(x)

    return weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        name='hra',
        targets=targets,
        materialize=materialize,
    )


def _units(u: Float[jax.Array, 'in rank'], orthonormal: bool) -> Float[jax.Array, 'in rank']:
    return jnp.linalg.qr(u)[0] if orthonormal else u / jnp.linalg.norm(u, axis=0, keepdims=True)
