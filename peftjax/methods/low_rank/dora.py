"""DoRA: trains the lengths of a weight's columns, and a low-rank change of their directions."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.shapes import HostArray
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described, padded_by
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.low_rank.low_rank import LowRank, LowRankLeaves


class Leaves(LowRankLeaves):
    magnitude: Float[jax.Array, ' out']


class Prepared(Leaves):
    gain: Float[jax.Array, ' out']


_LEAST = jnp.finfo(jnp.float32).tiny  # Of a squared length: a column of zeros is one, too.


@padded_by('rank')
@described
def dora(
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
    r"""Weight-decomposed low-rank adaptation: `W' = m V / |V|`, `V = W + s A B`.

    For `W: [in, out]`, `A: [in, r]`, `B: [r, out]`, `m: [out]`, and `|V|: [out]` the lengths of the
    columns of `V`. A use computes `(x W + s (x A) B) m / |V|`: with `T` tokens `2 T r (in + out) +
    3 T out` more FLOPs in the forward pass. The lengths depend only on weights. They are computed
    once per call, outside loops over layers or tokens, without forming `V`: `|V|^2 = |W|^2 + 2 s B
    . (A^T W) + s^2 B . (A^T A B)`, column by column, which costs `2 r in (out + r) + 2 r^2 out + 2
    in out + 6 r out` FLOPs, and is not differentiated. At the start `m = |W|` and `B = 0`, so that
    `W' = W`. It can be merged.

    Args:
      rank, alpha, rslora, dropout, rank_pattern, alpha_pattern: of the term `s A B`, see `lora`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'a': [*stack, in, r], 'b': [*stack, r, out],
      'magnitude': [*stack, out]}}`: `r (in + out) + out` parameters for each matrix.

    Raises:
      ValueError, TargetError: as `lora`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.dora(rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['magnitude'].shape
    (8,)

    References:
      Liu et al., DoRA, 2024 (arXiv:2402.09353), equation 5. The length in the denominator is a
      constant for the gradient, as in section 4.3 and the authors' code. Dropout acts on the
      low-rank branch alone; the authors' code drops the input of the whole change.
    """
    settings = LowRank(rank, alpha, rslora, dropout, rank_pattern, alpha_pattern, dtype)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        lengths = jnp.linalg.norm(matrix.astype(jnp.float32), axis=0)
        return {**settings.factors(key, matrix, site), 'magnitude': lengths.astype(dtype)}

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        direction = settings.sum(leaves, matrix)
        squares = jax.lax.stop_gradient(jnp.square(direction).sum(axis=0))
        gain = leaves['magnitude'] / jnp.sqrt(jnp.maximum(squares, _LEAST))
        return direction * gain[None]

    def prepare(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Prepared:
        lengths = _lengths(matrix, leaves['a'], leaves['b'], leaves['scale'])
        return {**leaves, 'gain': leaves['magnitude'] / jax.lax.stop_gradient(lengths)}

    def apply(leaves: Prepared, use: Use) -> Float[jax.Array, '...']:
        gain = leaves['gain'][None].astype(use.dtype)
        if use.transposed:
            # x W'^T = (x gain) V^T: the columns of V are what x meets.
            use = use.replace(x=use.x * gain)
            return use.forward(use.x) + settings.added(leaves, use)
        return (use.forward(use.x) + settings.added(leaves, use)) * gain

    return settings.checked(
        weightwise(
            init_weight,
            merge,
            apply,
            own=settings.own,
            prepare=prepare,
            name='dora',
            targets=targets,
            materialize=materialize,
        )
    )


def _lengths(
    matrix: Float[jax.Array, 'in out'],
    a: Float[HostArray, 'in rank'],
    b: Float[jax.Array, 'rank out'],
    scale: Float32[jax.Array, ''],
) -> Float32[jax.Array, ' out']:
    """`[out]`, lengths of the columns of `W + s A B`."""
    matrix, a, b = (
        jax.lax.stop_gradient(jnp.asarray(value, jnp.float32)) for value in (matrix, a, b)
    )
    crossed = (b * (a.T @ matrix)).sum(0)
    added = (b * ((a.T @ a) @ b)).sum(0)
    squares = jnp.square(matrix).sum(0) + 2 * scale * crossed + scale**2 * added
    # Rounding may leave a cancelled sum slightly below zero.
    return jnp.sqrt(jnp.maximum(squares, _LEAST))
