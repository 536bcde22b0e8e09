"""MiSS: one small matrix, shared by all shards of the input."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.blocks import check_divides, check_positive


class Leaves(TypedDict):
    d: Float[jax.Array, 'rank shared'] | Float[jax.Array, 'blocks rank rank']


@described
def miss(
    *,
    rank: int,
    targets: paths.Targets,
    mini_rank: int | None = None,
    bat: bool = False,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Matrix shard sharing: `W'[i, o] = W[i, o] + D[i mod r, o]`.

    For `W: [in, out]` and `D: [r, out]`. A use first sums the shards of `x`, so it adds `T in + 2 T
    r out + T out` FLOPs in the forward pass. At the start `D = 0`, so that `W' = W`. It can be
    merged.

    With `bat`, `D: [out / r, r, r]` also meets the weight (block affine transformation): for the
    blocks `[r, r]` of `W`, `W'[i, o] = W[i, o] + D[o]^T W[i, o] + D[o]^T`. Every block of columns
    transforms the input differently, so the merged matrix is formed: `2 r in out + 2 in out` more
    FLOPs in the forward pass, and a dense gradient.

    Args:
      rank: `r`, the length of a shard; the last may be shorter.
      mini_rank: share `D: [r, mini_rank]` between runs of columns as well; must divide `out`.
      bat: the block affine form, of `r out` parameters too; `rank` must divide `in` and `out`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'d': [*stack, r, out]}}` (`mini_rank` in place of
      `out`; `[*stack, out / r, r, r]` with `bat`).

    Raises:
      ValueError: a size below 1, `mini_rank` with `bat` or, from `init`, a `mini_rank` that does
        not divide `out`, a rank larger than `in`, or with `bat` one that does not divide a side.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.miss(rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['d'].shape
    (2, 8)

    References:
      Kang and Yin, MiSS: Balancing LoRA Performance and Efficiency with Simple Shard Sharing, 2024
      (arXiv:2409.15371), section 3. `mini_rank` is the code's `mini`,
      `bat` its `bat`.
    """
    check_positive(rank=rank, mini_rank=1 if mini_rank is None else mini_rank)
    if bat and mini_rank is not None:
        raise ValueError('bat shares no columns: give bat or mini_rank, not both')

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        del key
        inputs, outputs = matrix.shape
        if rank > inputs:
            raise ValueError(
                f'rank {rank} is larger than the input size {inputs} of {site.path!r} {site.shape} '
                f'{site.dtype}; write at most rank={inputs}'
            )
        if bat:
            check_divides(site, 'rank', rank, 'input', inputs)
            check_divides(site, 'rank', rank, 'output', outputs)
            return {'d': jnp.zeros((outputs // rank, rank, rank), dtype)}
        if mini_rank is not None:
            check_divides(site, 'mini_rank', mini_rank, 'output', outputs)
        return {'d': jnp.zeros((rank, outputs if mini_rank is None else mini_rank), dtype)}

    def columns(leaves: Leaves, outputs: int) -> Float[jax.Array, 'rank {outputs}']:
        return jnp.tile(leaves['d'], (1, outputs // leaves['d'].shape[1]))

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        inputs, outputs = matrix.shape
        shards = jnp.tile(columns(leaves, outputs), (-(-inputs // rank), 1))[:inputs]
        return matrix + shards

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, 'T out']:
        y, inputs = use.forward(use.x), use.x.shape[1]
        padded = jnp.pad(use.x, ((0, 0), (0, -inputs % rank)))
        summed = padded.reshape(len(padded), -1, rank).sum(axis=1)
        return y + summed @ columns(leaves, y.shape[1]).astype(use.dtype)

    def merge_bat(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        d = leaves['d']
        blocks = matrix.reshape(-1, rank, len(d), rank)
        turned = jnp.einsum('isop,osq->iqop', blocks, d) + d.transpose(2, 0, 1)[None]
        return matrix + turned.reshape(matrix.shape)

    if bat:
        return weightwise(
            init_weight, merge_bat, name='miss', targets=targets, materialize=materialize
        )
    return weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        name='miss',
        targets=targets,
        materialize=materialize,
    )
