"""GraLoRA: a separate low-rank term for every block of a grid."""

import math
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.blocks import check_positive
from peftjax.methods.low_rank.low_rank import check_alpha, rate


class Leaves(TypedDict):
    a: Float[jax.Array, 'blocks block_in rank']
    b: Float[jax.Array, 'blocks rank block_out']
    hybrid_a: NotRequired[Float[jax.Array, 'in hybrid']]
    hybrid_b: NotRequired[Float[jax.Array, 'hybrid out']]
    scale: NotRequired[Float[jax.Array, '']]
    dropout: NotRequired[Float[jax.Array, '']]


@described
def gralora(
    *,
    rank: int,
    targets: paths.Targets,
    blocks: int = 2,
    hybrid_rank: int = 0,
    alpha: float | None = None,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Granular low-rank adaptation: `W'[n, j] = W[n, j] + s A[n, j] B[n, j]`, block by block.

    `W: [in, out]` is a grid of `k x k` blocks `[in / k, out / k]`; each has `A: [in / k, r / k]`,
    `B: [r / k, out / k]`, so that the change has rank up to `k r` from LoRA's `r (in + out)`
    parameters. With `h = hybrid_rank` a LoRA term `s A_h B_h` of rank `h` is added;
    `s = alpha / (r + h)`. A use multiplies blocks of `drop(x)`: `2 T (r + h) (in + out) + 4 T out`
    more FLOPs in the forward pass (`T out` more with `h`). No matrix of the size of `W` is formed.
    At the start `B = B_h = 0`, so that `W' = W`; `A` and `A_h` are uniform within `1 / sqrt(rows)`.
    It can be merged.

    Args:
      rank: `r`, a multiple of `blocks`.
      targets: which weights, see `Sites.match_weights`.
      blocks: `k`, which must divide `in` and `out`; 1 is LoRA.
      hybrid_rank: `h`, in addition to `rank`.
      alpha: numerator of the scale; `rank + hybrid_rank` (a scale of 1) by default.
      dropout: dropout rate on the input of the branch; active when `predict` gets an `adapter_key`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'a': [*stack, k, in / k, r], 'b': [*stack, k, r,
      out / k]}}`, with `hybrid_a: [*stack, in, h]`, `hybrid_b: [*stack, h, out]` for `h > 0`. The
      columns of `a[n]` and the rows of `b[j]` are `k` runs of `r / k`: run `j` of `a[n]` meets
      run `n` of `b[j]`.

    Raises:
      ValueError: a size below 1 (`hybrid_rank`: 0), a rate outside [0, 1), a rank that is no
        multiple of `blocks` or, from `init`, `blocks` that do not divide a side.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.gralora(rank=2, blocks=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['b'].shape
    (2, 2, 4)

    References:
      Jung et al., GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning, 2025
      (arXiv:2505.20355), section 3. The paper's hybrid takes its rank out of `r`; here, as in the
      torch library, it is added, and shares the scale.
    """
    check_positive(rank=rank, blocks=blocks, hybrid_rank=hybrid_rank or 1)
    if rank % blocks:
        raise ValueError(
            f'rank {rank} is no multiple of blocks {blocks}; write for example '
            f'rank={blocks * max(1, rank // blocks)}'
        )
    check_alpha(alpha)
    noise = rate(dropout)
    scale = 1.0 if alpha is None else alpha / (rank + hybrid_rank)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        _check_blocks(blocks, matrix.shape, site)
        keys = jax.random.split(key)
        inputs, outputs = matrix.shape
        rows, columns = inputs // blocks, outputs // blocks
        leaves: Leaves = {
            'a': _uniform(keys[0], (blocks, rows, rank), rows, dtype),
            'b': jnp.zeros((blocks, rank, columns), dtype),
        }
        if hybrid_rank:
            leaves['hybrid_a'] = _uniform(keys[1], (inputs, hybrid_rank), inputs, dtype)
            leaves['hybrid_b'] = jnp.zeros((hybrid_rank, outputs), dtype)
        return leaves

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        delta = jnp.einsum('nijr,jnro->nijo', *_grid(leaves)).reshape(matrix.shape)
        if hybrid_rank:
            delta = delta + leaves['hybrid_a'] @ leaves['hybrid_b']
        return matrix + leaves['scale'] * delta

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, 'T out']:
        leaves = jax.tree.map(lambda leaf: leaf.astype(use.dtype), leaves)
        x, (a, b) = use.dropped(leaves.get('dropout')), _grid(leaves)
        hidden = jnp.einsum('tni,nijr->tnjr', x.reshape(len(x), blocks, -1), a)
        added = jnp.einsum('tnjr,jnro->tjo', hidden, b).reshape(len(x), -1)
        if hybrid_rank:
            added = added + (x @ leaves['hybrid_a']) @ leaves['hybrid_b']
        return use.forward(use.x) + leaves['scale'].astype(added.dtype) * added

    return weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        own=lambda site: {'scale': scale, **noise},
        name='gralora',
        targets=targets,
        materialize=materialize,
    )


def _check_blocks(blocks: int, shape: tuple[int, ...], site: WeightSite) -> None:
    for side, length in zip(('input', 'output'), shape, strict=True):
        if length % blocks:
            best = math.gcd(blocks, *shape)
            raise ValueError(
                f'blocks {blocks} does not divide the {side} size {length} of {site.path!r} '
                f'{site.shape} {site.dtype}; write for example blocks={best}'
            )


def _grid(
    leaves: Leaves,
) -> tuple[
    Float[jax.Array, 'blocks block_in blocks run'],
    Float[jax.Array, 'blocks blocks run block_out'],
]:
    """`A[n, j]` at `[n, :, j]` and `B[n, j]` at `[j, n]`."""
    a, b = leaves['a'], leaves['b']
    blocks, rows, rank = a.shape
    run = rank // blocks
    return a.reshape(blocks, rows, blocks, run), b.reshape(blocks, blocks, run, -1)


def _uniform(
    key: PRNGKeyArray, shape: tuple[int, ...], rows: int, dtype: Any
) -> Float[jax.Array, '...']:
    bound = 1.0 / math.sqrt(rows)
    return jax.random.uniform(key, shape, dtype, -bound, bound)
