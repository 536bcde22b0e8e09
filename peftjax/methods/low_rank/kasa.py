"""KaSA: a low-rank change with singular values, on a weight without its smallest ones."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.low_rank.low_rank import LowRank, LowRankLeaves


class Leaves(LowRankLeaves):
    diag: Float[jax.Array, ' rank']


@described
def kasa(
    *,
    rank: int,
    targets: paths.Targets,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Knowledge-aware singular-value adaptation: `W' = W_r + s A diag(d) B`.

    `W_r` is `W: [in, out]` without its `r` smallest singular values, which the paper regards as
    noise. It stays frozen in `frozen.params`. `A: [in, r]`, `B: [r, out]` and `d: [r]` train. A use
    costs `2 T r (in + out) + T r` more FLOPs in the forward pass. At the start `B = 0` and `d ~
    N(0, 1)`, so that `W' = W_r`: close to `W`, and not `W`. It can be merged.

    Args:
      rank: `r`, below the smaller side of each matrix.
      alpha, rslora, dropout, rank_pattern, alpha_pattern: as in `lora`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'a': [*stack, in, r], 'b': [*stack, r, out],
      'diag': [*stack, r]}}`: `r (in + out + 1)` parameters for each matrix.

    Raises:
      ValueError: from `init`, a rank that leaves no singular value; otherwise as `lora`.
      TargetError: as `lora`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.kasa(rank=2, targets=r'hidden')
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> adapter['hidden/kernel']['diag'].shape
    (2,)
    >>> int(jnp.linalg.matrix_rank(frozen.params['hidden']['kernel'], rtol=1e-5))  # Of 4 by 8.
    2

    References:
      Wang et al., KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models, 2024
      (arXiv:2412.06071), as Hugging Face's peft computes it. The penalties on `d` and on the
      orthogonality of the factors, which that library leaves to the caller too, are not here.
    """
    settings = LowRank(rank, alpha, rslora, dropout, rank_pattern, alpha_pattern, dtype)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        here, most = settings.rank_at(site.path), min(matrix.shape) - 1
        if here > most:
            raise ValueError(
                f'rank {here} leaves no singular value of {site.path!r}, a matrix '
                f'{list(matrix.shape)} (leaf {site.shape} {site.dtype}); write at most rank={most}'
            )
        first, second = jax.random.split(key)
        diag = jax.random.normal(second, (here,), dtype)
        return {**settings.factors(first, matrix, site), 'diag': diag}

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        scaled = leaves['a'] * (leaves['scale'] * leaves['diag'])[None]
        return matrix + scaled @ leaves['b']

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, '...']:
        dropped = use.dropped(leaves.get('dropout'))
        middle = leaves['scale'] * leaves['diag']
        return use.forward(use.x) + use.lowrank(dropped, leaves['a'], leaves['b'], middle)

    def remainder(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        left, values, right = jnp.linalg.svd(matrix.astype(jnp.float32), full_matrices=False)
        least = len(values) - leaves['diag'].shape[0]
        return matrix - (left[:, least:] * values[None, least:]) @ right[least:]

    return settings.checked(
        weightwise(
            init_weight,
            merge,
            apply,
            own=settings.own,
            remainder=remainder,
            name='kasa',
            targets=targets,
            materialize=materialize,
        )
    )
