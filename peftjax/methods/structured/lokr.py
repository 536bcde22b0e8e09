"""LoKr: a change that is the Kronecker product of two small matrices."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.promotion import widened
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.blocks import check_positive
from peftjax.methods.low_rank.low_rank import check_alpha


class Leaves(TypedDict, total=False):
    c: Float[jax.Array, 'outer_in outer_out']
    c_a: Float[jax.Array, 'outer_in rank']
    c_b: Float[jax.Array, 'rank outer_out']
    d: Float[jax.Array, 'inner_in inner_out']
    d_a: Float[jax.Array, 'inner_in rank']
    d_b: Float[jax.Array, 'rank inner_out']
    scale: Float[jax.Array, '']


@described
def lokr(
    *,
    rank: int,
    targets: paths.Targets,
    alpha: float | None = None,
    factor: int = -1,
    decompose_both: bool = False,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Low-rank Kronecker product: `W' = W + s C (x) D`, `D = D_a D_b`.

    For `W: [in, out]`, `in = m n` and `out = l k`, with `C: [m, l]`, `D: [n, k]` of rank `r` and `s
    = alpha / r`: entry `(i n + p, j k + q)` of the change is `s C[i, j] D[p, q]`. A use multiplies
    the blocks of `x` by `D` and then by `C`, and forms no matrix of the size of `W`: with `T`
    tokens `2 T m n k + 2 T m l k + 2 T out` more FLOPs in the forward pass and `2 n r k` for `D`.
    At the start `D_b = 0` (`D = 0` where it is not factored), so that `W' = W`. It can be merged.

    Args:
      rank: `r`. A factor whose larger side is at most `2 r` is kept whole.
      alpha: numerator of the scale; `rank` (a scale of 1) by default.
      factor: `m` and `l`, if it divides `in` and `out`; -1 for the divisors nearest to the square
        roots.
      decompose_both: also keep `C = C_a C_b` of rank `r`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'c': [*stack, m, l], 'd_a': [*stack, n, r],
      'd_b': [*stack, r, k]}}`, with `c_a`, `c_b` for a factored `C` and `d` for a whole `D`.

    Raises:
      ValueError: a rank below 1, or a factor that is neither -1 nor at least 1.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lokr(rank=1, factor=2, targets=r'hidden')
    >>> entry = tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']
    >>> {name: leaf.shape for name, leaf in entry.items()}
    {'c': (2, 2), 'd_a': (2, 1), 'd_b': (1, 4)}

    References:
      Yeh et al., LyCORIS, 2023 (arXiv:2309.14859), section 3.2, equations 4 and 5; Edalati et al.,
      KronA, 2022 (arXiv:2212.10650). Where both factors are whole, LyCORIS sets the scale to 1;
      here and in the torch library it stays `alpha / r`.
    """
    check_positive(rank=rank)
    if factor != -1:
        check_positive(factor=factor)
    check_alpha(alpha)
    scale = 1.0 if alpha is None else alpha / rank

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        del site
        (m, n), (left, k) = (divisors(side, factor) for side in matrix.shape)
        keys = jax.random.split(key, 3)

        def drawn(
            key: PRNGKeyArray, rows: int, columns: int
        ) -> Float[jax.Array, '{rows} {columns}']:
            bound = 1.0 / math.sqrt(rows)
            return jax.random.uniform(key, (rows, columns), dtype, -bound, bound)

        if decompose_both and 2 * rank < max(m, left):
            leaves: Leaves = {'c_a': drawn(keys[0], m, rank), 'c_b': drawn(keys[1], rank, left)}
        else:
            leaves = {'c': drawn(keys[0], m, left)}
        if 2 * rank < max(n, k):
            leaves |= {'d_a': drawn(keys[2], n, rank), 'd_b': jnp.zeros((rank, k), dtype)}
        else:
            leaves['d'] = jnp.zeros((n, k), dtype)
        return leaves

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        delta = leaves['scale'] * jnp.kron(_whole(leaves, 'c'), _whole(leaves, 'd'))
        return matrix + delta

    def prepare(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Leaves:
        del matrix
        return {**leaves, 'c': _whole(leaves, 'c'), 'd': _whole(leaves, 'd')}

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, 'T out']:
        # The smaller factor takes the scale: at the output it would cost T out more.
        c = _whole(leaves, 'c').astype(use.dtype)
        d = jnp.multiply(*widened((leaves['scale'], _whole(leaves, 'd')))).astype(use.dtype)
        blocks = use.x.reshape(len(use.x), len(c), len(d))
        added = jnp.einsum('tmk,ml->tlk', blocks @ d, c).reshape(len(use.x), -1)
        return use.forward(use.x) + added

    return weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        own=lambda site: {'scale': scale},
        prepare=prepare,
        name='lokr',
        targets=targets,
        materialize=materialize,
    )


def divisors(size: int, factor: int) -> tuple[int, int]:
    """`(m, n)` with `m n = size`: `m = factor` where it divides, else the largest below it.

    >>> divisors(128, -1), divisors(128, 4), divisors(127, -1)
    ((8, 16), (4, 32), (1, 127))
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    first = max(each for each in range(1, most + 1) if size % each == 0)
    return first, size // first


def _whole(leaves: Mapping[str, Any], name: str) -> Float[jax.Array, '_ _']:
    return leaves[name] if name in leaves else leaves[f'{name}_a'] @ leaves[f'{name}_b']
