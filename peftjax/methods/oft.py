"""OFT: the input turned by trained block-diagonal rotations."""

from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.base import PeftTransform, Use
from peftjax.core.sites import WeightSite
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.blocks import check_divides, check_positive


def oft(
    *,
    block_size: int,
    targets: paths.Targets,
    block_share: bool = False,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Orthogonal fine-tuning: `W' = R W`, `R = diag(R_i)`, `R_i = (I - Q_i)(I + Q_i)^-1`.

    For `W: [in, out]`, blocks of size `b`, `n = in / b`, and skew-symmetric `Q_i: [b, b]` of which
    the upper triangle trains. The Cayley transform keeps every `R_i` a rotation, so that angles and
    lengths between the columns of `W` stay. A use turns the input, `(x R) W`: `2 T b in` more FLOPs
    forward and `O(n b^3)` for the rotations, taken once a call and outside of loops. At the start
    `Q = 0`, so that `W' = W`. It merges.

    Args:
      block_size: `b`, which must divide `in`.
      block_share: one rotation for all blocks of a matrix.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'q': [*stack, n, b (b - 1) / 2]}}` (`n = 1` with
      `block_share`).

    Raises:
      ValueError: a block size below 2 or, from `init`, one that does not divide `in`.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.oft(block_size=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)['hidden/kernel']['q'].shape
    (2, 1)

    References:
      Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, 2023
      (arXiv:2306.07280), section 3.3; Qiu et al., OFTv2, 2025 (arXiv:2506.19847), section 3, for
      turning the input and not the weight. The inverse is solved for exactly, where OFTv2 sums a
      Neumann series.
    """
    check_positive(block_size=block_size)
    if block_size < 2:
        raise ValueError('block_size 1 has no rotation; write at least block_size=2')

    def init_weight(key: jax.Array, matrix: jax.Array, site: WeightSite) -> dict[str, jax.Array]:
        del key
        check_divides(site, 'block_size', block_size, 'input', matrix.shape[0])
        blocks = 1 if block_share else matrix.shape[0] // block_size
        return {'q': jnp.zeros((blocks, block_size * (block_size - 1) // 2), dtype)}

    def merge(leaves: Any, matrix: jax.Array, path: str) -> jax.Array:
        del path
        wide = jnp.promote_types(matrix.dtype, leaves['q'].dtype)
        turned = jnp.einsum(
            'nij,njo->nio',
            _per_block(_rotations(leaves['q'], block_size), matrix.shape[0]).astype(wide),
            matrix.astype(wide).reshape(-1, block_size, matrix.shape[1]),
        )
        return turned.reshape(matrix.shape).astype(matrix.dtype)

    def prepare(leaves: Any, matrix: jax.Array, path: str) -> Any:
        del matrix, path
        return {**leaves, 'r': _rotations(leaves['q'], block_size)}

    def apply(leaves: Any, use: Use, path: str) -> jax.Array:
        del path
        blocks = use.x.reshape(len(use.x), -1, block_size)
        rotations = _per_block(leaves['r'].astype(use.dtype), use.x.shape[1])
        return use.base(jnp.einsum('tni,nij->tnj', blocks, rotations).reshape(use.x.shape))

    return weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        prepare=prepare,
        targets=targets,
        materialize=materialize,
    )


def _rotations(q: jax.Array, size: int) -> jax.Array:
    """`[n, b, b]` from the upper triangles `[n, b (b - 1) / 2]`."""
    rows, columns = jnp.triu_indices(size, 1)
    wide = q.astype(jnp.float32)
    upper = jnp.zeros((len(q), size, size), jnp.float32).at[:, rows, columns].set(wide)
    skew, eye = upper - jnp.swapaxes(upper, 1, 2), jnp.eye(size)
    # (I - Q)(I + Q)^-1: the two factors commute.
    return jnp.linalg.solve(eye + skew, jnp.broadcast_to(eye, skew.shape) - skew)


def _per_block(rotations: jax.Array, inputs: int) -> jax.Array:
    size = rotations.shape[-1]
    return jnp.broadcast_to(rotations, (inputs // size, size, size))
