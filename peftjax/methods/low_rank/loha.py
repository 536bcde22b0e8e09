"""LoHa: the product, entry by entry, of two low-rank matrices."""

from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described, padded_by
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.blocks import check_positive
from peftjax.methods.low_rank.low_rank import check_alpha


class Leaves(TypedDict):
    a1: Float[jax.Array, 'in rank']
    a2: Float[jax.Array, 'in rank']
    b1: Float[jax.Array, 'rank out']
    b2: Float[jax.Array, 'rank out']
    scale: NotRequired[Float[jax.Array, '']]


@padded_by('rank')
@described
def loha(
    *,
    rank: int,
    targets: paths.Targets,
    alpha: float | None = None,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Low-rank Hadamard product: `W' = W + s (A1 B1) * (A2 B2)`, `*` entry by entry.

    For `W: [in, out]`, `A: [in, r]`, `B: [r, out]`, `s = alpha / r`: the change has rank up to
    `r^2` and `2 r (in + out)` parameters. It must be formed as a matrix: this costs `4 r in out + 2
    in out` FLOPs, and its use `2 T in out + T out`, in the forward pass. Its gradient is dense too.
    At the start `A2 = 0`, so that `W' = W`. It can be merged.

    Args:
      rank: `r`.
      alpha: numerator of the scale; `rank` (a scale of 1) by default.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'a1', 'a2': [*stack, in, r], 'b1', 'b2':
      [*stack, r, out]}}`.

    Raises:
      ValueError: a rank below 1.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.loha(rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['b2'].shape
    (2, 8)

    References:
      Hyeon-Woo et al., FedPara, 2021 (arXiv:2108.06098), proposition 1; Yeh et al., LyCORIS, 2023
      (arXiv:2309.14859), section 3.2, equation 3. Start as in the LyCORIS code: `A1 ~ N(0, 1)`,
      `B1 ~ N(0, 0.1^2)`, `B2 ~ N(0, 1)`.
    """
    check_positive(rank=rank)
    check_alpha(alpha)
    scale = 1.0 if alpha is None else alpha / rank

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        del site
        keys = jax.random.split(key, 3)
        left, right = (matrix.shape[0], rank), (rank, matrix.shape[1])
        return {
            'a1': jax.random.normal(keys[0], left, dtype),
            'b1': 0.1 * jax.random.normal(keys[1], right, dtype),
            'a2': jnp.zeros(left, dtype),
            'b2': jax.random.normal(keys[2], right, dtype),
        }

    def delta(leaves: Leaves) -> Float[jax.Array, 'in out']:
        return leaves['scale'] * (leaves['a1'] @ leaves['b1']) * (leaves['a2'] @ leaves['b2'])

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        return matrix + delta(leaves)

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, '...']:
        return use.forward(use.x) + use.product(use.x, delta(leaves))

    return weightwise(
        init_weight,
        merge,
        apply,
        own=lambda site: {'scale': scale},
        name='loha',
        targets=targets,
        materialize=materialize,
        dense=True,
    )
