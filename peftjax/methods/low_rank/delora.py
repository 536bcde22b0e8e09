"""DeLoRA: low-rank terms of length one, and one trained strength for all of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.promotion import widened
from peftjax.core.shapes import HostArray
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described, padded_by
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.low_rank.low_rank import LowRank, LowRankLeaves


class Leaves(LowRankLeaves):
    strength: Float[jax.Array, '']


class Prepared(Leaves):
    scaled: Float[jax.Array, 'in rank']


_SHORTEST = 1e-4


@padded_by('rank')
@described
def delora(
    *,
    rank: int,
    targets: paths.Targets,
    strength: float = 15.0,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Decoupled low-rank adaptation: `W' = W + (l / r) N sum_i a_i b_i / (|a_i| |b_i|)`.

    For `W: [in, out]`, columns `a_i` of `A: [in, r]`, rows `b_i` of `B: [r, out]`, and the diagonal
    `N: [in, in]` of the lengths of the rows of `W`, which do not train. The strength `l` bounds the
    distance of `W'` from `W`, for any `A` and `B`. A use adds `2 T r (in + out) + T out` FLOPs in
    the forward pass; lengths and the scaled factor take `2 in out + 4 r in + 2 r out` more, once
    per call. At the start `B = 0`, so that `W' = W`; a length below 1e-4 counts as 1e-4. Since
    lengths do not matter, the first step goes as far as `l` allows. If that is too far, lower
    `strength`. It can be merged.

    Args:
      rank: `r`.
      strength: the initial value of `l`.
      dropout: dropout rate on the input of the change; active when `predict` gets an `adapter_key`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'a': [*stack, in, r], 'b': [*stack, r, out],
      'strength': [*stack]}}`: `r (in + out) + 1` parameters for each matrix.

    Raises:
      ValueError: a rank below 1.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.delora(rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['a'].shape
    (4, 2)

    References:
      Bini et al., DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation, 2025
      (arXiv:2503.18225), section 3. As in Hugging Face's peft, rows of `W` have a length each,
      where the paper takes one norm of the whole matrix, and `B` starts at zero, where the paper
      starts from a random product that it takes away again.
    """
    settings = LowRank(rank, dropout=dropout, dtype=dtype)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        return {**settings.factors(key, matrix, site), 'strength': jnp.asarray(strength, dtype)}

    def own(site: WeightSite) -> dict[str, float]:
        return {**settings.own(site), 'scale': 1.0 / rank}

    def scaled(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in rank']:
        """`A` with all that is in front of and between the factors."""
        a, b, strength = (leaves[name].astype(jnp.float32) for name in ('a', 'b', 'strength'))
        rows = _lengths(jax.lax.stop_gradient(matrix.astype(jnp.float32)), 1, 0.0)
        between = strength * leaves['scale'] / (_lengths(a, 0) * _lengths(b, 1))
        return rows[:, None] * a * between[None]

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        delta = scaled(leaves, matrix) @ leaves['b'].astype(jnp.float32)
        return jnp.add(*widened((matrix, delta)))

    def prepare(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Prepared:
        return {**leaves, 'scaled': scaled(leaves, matrix)}

    def apply(leaves: Prepared, use: Use) -> Float[jax.Array, '...']:
        return use.forward(use.x) + use.lowrank(
            use.dropped(leaves.get('dropout')), leaves['scaled'], leaves['b']
        )

    return weightwise(
        init_weight,
        merge,
        apply,
        own=own,
        prepare=prepare,
        name='delora',
        targets=targets,
        materialize=materialize,
    )


def _lengths(
    vectors: Float[HostArray, '_ _'], axis: int, least: float = _SHORTEST
) -> Float[jax.Array, ' _']:
    """At least `least`, and with no gradient below."""
    return jnp.sqrt(jnp.maximum((vectors**2).sum(axis), least**2))
