"""HiRA: a low-rank matrix that scales the entries of the weight."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from peftjax.core import paths
from peftjax.core.promotion import widened
from peftjax.core.transform import PeftTransform, described, padded_by
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.low_rank.low_rank import LowRank, LowRankLeaves, rate


@padded_by('rank')
@described
def hira(
    *,
    rank: int,
    targets: paths.Targets,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Hadamard high-rank adaptation: `W' = W + W * (A B)`, `*` entry by entry.

    For `W: [in, out]`, `A: [in, r]`, `B: [r, out]`: the change can have the rank of `W`, with the
    `r (in + out)` parameters of LoRA. The change must be formed as a matrix: this costs `2 r in out
    + in out` FLOPs, and its use `2 T in out + T out`, in the forward pass. Its gradient is dense
    too. At the start `B = 0` (for an embedding `A = 0`), so that `W' = W`. It can be merged.

    Args:
      rank: `r`.
      dropout: dropout rate on the input of the change; active when `predict` gets an `adapter_key`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'a': [*stack, in, r], 'b': [*stack, r, out]}}`.

    Raises:
      ValueError, TargetError: as `lora`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.hira(rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['a'].shape
    (4, 2)

    References:
      Huang et al., HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language
      Models, ICLR 2025, equation 3.
    """
    settings = LowRank(rank, dropout=dropout, dtype=dtype)

    def delta(
        leaves: LowRankLeaves, matrix: Float[jax.Array, 'in out']
    ) -> Float[jax.Array, 'in out']:
        return matrix * (leaves['a'] @ leaves['b'])

    def merge(
        leaves: LowRankLeaves, matrix: Float[jax.Array, 'in out']
    ) -> Float[jax.Array, 'in out']:
        return matrix + delta(leaves, matrix)

    def apply(leaves: LowRankLeaves, use: Use) -> Float[jax.Array, '...']:
        change = delta(*widened((leaves, use.weight())))
        return use.forward(use.x) + use.product(use.dropped(leaves.get('dropout')), change)

    return weightwise(
        settings.factors,
        merge,
        apply,
        own=lambda site: rate(dropout),
        name='hira',
        targets=targets,
        materialize=materialize,
        dense=True,
    )
