"""LoftQ: a quantised base, and LoRA that starts from the quantisation error."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry
from peftjax.core.layout import Layout
from peftjax.core.merge import check_whole, over_stack
from peftjax.core.quantized import QuantizedArray, Scheme, one_matrix
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.blocks import check_positive
from peftjax.methods.low_rank.low_rank import LowRank, LowRankLeaves
from peftjax.quantize.model import scheme_of


@described
def loftq(
    *,
    rank: int,
    scheme: str | Scheme = 'nf4',
    iterations: int = 5,
    alpha: float | None = None,
    dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    targets: paths.Targets,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""LoRA on weights that it quantises: `W' = Q + s A B`, with `Q + s A B` near `W` at the start.

    Repeated `T` times, starting from `A B = 0`: `Q = quantise(W - s A B)`, then `s A B` is the best
    approximation of `W - Q` of its rank, with its singular values shared evenly. So `init` needs a
    model in full precision. In the `frozen.params` that it returns, `Q` replaces the weights:

        adapter, frozen = tx.init(key, model)
        merged = tx.merge(adapter, frozen._replace(params=peftjax.dequantize(frozen.params)))

    A use computes `x Q + s (x A) B` as LoRA does, and dequantises `Q` for it. Nothing can be added
    to quantised codes, so merge into the dequantised `Q`, as above.

    Args:
      rank: `r`. alpha: `s = alpha / r`; `s = 1` unless given.
      scheme: of the codes, a name or a `Scheme`, see `peftjax.quantize`.
      iterations: `T`, at least 1; more than 5 gain little.
      dropout: rate on the input of the branch, in training with an `adapter_key`.
      rank_pattern, alpha_pattern: exceptions by path pattern, the first that matches.
      targets: regular expressions for leaf or module paths.
      dtype: of the factors; decompositions run in float32.

    Returns:
      A transform whose adapter is `{leaf path: Entry}` with `a` `[*stack, in, r]` and `b`
      `[*stack, r, out]`.

    Raises:
      ValueError: a rank, dropout or number of iterations out of range, or an unknown scheme.
      MergeError: from `init`, weights that are quantised already.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.loftq(rank=2, targets=r'hidden')
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> frozen.params['hidden']['kernel']
    QuantizedArray(nf4, (4, 8) float32, 272 bytes)

    References:
      Li et al., LoftQ, 2023 (arXiv:2310.08659), section 3, algorithm 1, with a scale of 1: here
      `A B` is divided by `s`, so that any alpha starts from the same weights. Singular values are
      shared as in the authors' code.
    """
    check_positive(iterations=iterations)
    settings = LowRank(rank, alpha, False, dropout, rank_pattern, alpha_pattern, dtype)
    chosen = scheme_of(scheme)

    def init(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> LowRankLeaves:
        del key
        settings.check_rank(matrix, site)
        assert site.layout is not None
        rank_here = settings.rank_at(site.path)
        _, a, b = _alternate(matrix, site.layout, rank_here, iterations, chosen)
        scale = settings.scale_at(site.path)
        return {'a': a.astype(dtype), 'b': (b / scale).astype(dtype)}

    def merge(
        leaves: LowRankLeaves, matrix: Float[jax.Array, 'in out']
    ) -> Float[jax.Array, 'in out']:
        return settings.sum(leaves, matrix)

    def apply(leaves: LowRankLeaves, use: Use) -> Float[jax.Array, '...']:
        return use.forward(use.x) + settings.added(leaves, use)

    def rest(params: Any, adapter: dict[str, Entry], own: Any) -> Any:
        del own
        leaves = paths.slots(params)
        for path in adapter:
            check_whole(path, leaves[path], 'loftq')
        return paths.replace(
            params, {path: quantized(leaves[path], path, adapter[path]) for path in adapter}
        )

    def quantized(leaf: Float[jax.Array, '...'], path: str, entry: Entry) -> QuantizedArray:
        layout, rank_here = entry.layout, settings.rank_at(path)
        assert layout is not None

        def one(matrix: Float[jax.Array, 'in out']) -> QuantizedArray:
            return _alternate(matrix, layout, rank_here, iterations, chosen)[0]

        return over_stack(one, layout)(layout.to_matrix(leaf))

    transform = settings.checked(
        weightwise(init, merge, apply, own=settings.own, targets=targets, name='loftq')
    )
    return transform.replace(rest=rest)


def _alternate(
    matrix: Float[jax.Array, 'in out'], layout: Layout, rank: int, iterations: int, scheme: Scheme
) -> tuple[QuantizedArray, Float32[jax.Array, 'in rank'], Float32[jax.Array, 'rank out']]:
    """`Q`, `A` and `B`, of a scale of 1."""
    wide, one = matrix.astype(jnp.float32), one_matrix(layout)
    quantized, a, b = None, jnp.zeros((len(matrix), rank)), jnp.zeros((rank, matrix.shape[1]))
    for _ in range(iterations):
        rest = one.from_matrix((wide - a @ b).astype(matrix.dtype))
        quantized = QuantizedArray.of(rest, one, scheme)
        lost = wide - one.to_matrix(quantized.dequantize()).astype(jnp.float32)
        left, values, right = jnp.linalg.svd(lost, full_matrices=False)
        root = jnp.sqrt(values[:rank])
        a, b = left[:, :rank] * root[None], root[:, None] * right[:rank]
    assert quantized is not None
    return quantized, a, b
