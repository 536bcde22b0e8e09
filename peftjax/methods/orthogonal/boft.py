"""BOFT: a product of sparse rotations turns the input, wired like a butterfly."""

from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.blocks import check_divides, check_positive
from peftjax.methods.orthogonal.rotations import cayley, skew, turn


class Leaves(TypedDict):
    q: Float[jax.Array, 'factors blocks *free']
    s: NotRequired[Float[jax.Array, ' out']]


class Prepared(Leaves):
    r: Float[jax.Array, 'factors blocks block block']


@described
def boft(
    *,
    block_size: int,
    targets: paths.Targets,
    factors: int = 1,
    scale: bool = True,
    whole_blocks: bool = False,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Butterfly orthogonal fine-tuning: `W' = R W diag(s)`, `R = B_m ... B_1`.

    For `W: [in, out]`, blocks of size `b`, `n = in / b`: `B_i = P_i diag(R_i1, ..., R_in) P_i^T`
    with the Cayley transforms `R_ij = (I - Q_ij)(I + Q_ij)^-1` of skew-symmetric `Q_ij`. The fixed
    permutations `P_i` mix the halves of `2^(i - 1)` neighbouring blocks, so that the `m` factors
    together mix `b 2^(m - 1)` inputs. `m = 1` is OFT. A use turns the input `m` times: `2 T m b in
    + T out` more FLOPs in the forward pass. The rotations are computed once per call, outside of
    loops, with about `3 m n b^3` FLOPs forward and `4 m n b^3` backward. At the start `Q = 0` and
    `s = 1`, so that `W' = W`. It can be merged.

    Args:
      block_size: `b`, which must be even if `factors` is above 1.
      factors: `m`; `b 2^(m - 1)` must divide `in`.
      scale: train `s` too, as the authors' code does.
      whole_blocks: train all `b^2` entries of each block, `Q = (M - M^T) / 2`, as the authors' code
        does; otherwise only the upper triangle of `Q` trains.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's dtype.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'q': [*stack, m, n, b (b - 1) / 2], 's': [*stack,
      out]}}`; `q` is `[*stack, m, n, b, b]` with `whole_blocks`.

    Raises:
      ValueError: a block size below 2, or an odd one with several factors; from `init`, a `b 2^(m -
        1)` that does not divide `in`.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.boft(block_size=2, factors=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['q'].shape
    (2, 2, 1)

    References:
      Liu et al., Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization, 2023
      (arXiv:2311.06243), section 4 and equation 3. Without its compiled extension, the authors'
      code silently uses one factor, whatever number is requested; here all are used.
    """
    check_positive(block_size=block_size, factors=factors)
    if block_size < 2:
        raise ValueError('block_size 1 has no rotation; write at least block_size=2')
    if factors > 1 and block_size % 2:
        raise ValueError(
            f'block_size {block_size} is odd, and several factors mix halves of blocks; write '
            f'block_size={block_size + 1}, or factors=1'
        )

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        del key
        name = 'block_size' if factors == 1 else 'block_size * 2^(factors - 1)'
        check_divides(site, name, block_size * 2 ** (factors - 1), 'input', matrix.shape[0])
        free = (block_size, block_size) if whole_blocks else (block_size * (block_size - 1) // 2,)
        leaves: Leaves = {'q': jnp.zeros((factors, matrix.shape[0] // block_size, *free), dtype)}
        return {**leaves, 's': jnp.ones(matrix.shape[1], dtype)} if scale else leaves

    def rotations(q: Float[jax.Array, ' blocks *free']) -> Float32[jax.Array, 'blocks block block']:
        """The rotations of one factor, `[n, b, b]`."""
        if not whole_blocks:
            return cayley(skew(q, block_size))
        wide = q.astype(jnp.float32)
        return cayley((wide - jnp.swapaxes(wide, 1, 2)) / 2)

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        columns = matrix.T
        for number, q in enumerate(leaves['q']):
            inverse = jnp.swapaxes(rotations(q), 1, 2).astype(matrix.dtype)
            columns = _turn_mixed(columns, inverse, block_size, number)
        return columns.T * leaves['s'][None] if scale else columns.T

    def prepare(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Prepared:
        del matrix
        return {**leaves, 'r': jnp.stack([rotations(q) for q in leaves['q']])}

    def apply(leaves: Prepared, use: Use) -> Float[jax.Array, 'T out']:
        x, turns = use.x, leaves['r'].astype(use.dtype)
        for number in reversed(range(factors)):
            x = _turn_mixed(x, turns[number], block_size, number)
        y = use.forward(x)
        return y * leaves['s'][None].astype(use.dtype) if scale else y

    return weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        prepare=prepare,
        targets=targets,
        name='boft',
        materialize=materialize,
    )


def _turn_mixed(
    x: Float[jax.Array, 'T in'],
    rotations: Float[jax.Array, 'blocks block block'],
    size: int,
    number: int,
) -> Float[jax.Array, 'T in']:
    """`x P diag(rotations) P^T` with the permutation of the given factor."""
    if number == 0:
        return turn(x, rotations)
    order = _butterfly(x.shape[1], size, number)
    return turn(x[:, np.argsort(order)], rotations)[:, order]


def _butterfly(features: int, size: int, number: int) -> Int[np.ndarray, ' {features}']:
    """In each group of `2^number` blocks, the even half-blocks and then the odd ones.

    >>> _butterfly(8, 2, 1)
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    halves = np.arange(features).reshape(-1, 2**number, 2, size // 2)
    return np.swapaxes(halves, 1, 2).reshape(-1)
