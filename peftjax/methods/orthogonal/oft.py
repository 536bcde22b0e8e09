"""OFT: trained block-diagonal rotations turn the input."""

import math
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.numbers import is_plain
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.blocks import check_divides, check_positive
from peftjax.methods.orthogonal.rotations import cayley, skew, turn


class Leaves(TypedDict):
    q: Float[jax.Array, 'blocks entries']
    eps: NotRequired[Float32[jax.Array, '']]


class Prepared(Leaves):
    r: Float[jax.Array, 'blocks block block']


@described
def oft(
    *,
    block_size: int,
    targets: paths.Targets,
    block_share: bool = False,
    eps: float | None = None,
    neumann_terms: int | None = None,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Orthogonal fine-tuning: `W' = R W`, `R = diag(R_i)`, `R_i = (I - Q_i)(I + Q_i)^-1`.

    The input axis of `W: [in, out]` has `n = in / b` blocks of size `b`. Each `Q_i: [b, b]` is
    skew-symmetric, and its upper triangle trains. The Cayley transform makes every `R_i` a
    rotation, so the lengths of the columns of `W` and the angles between them do not change. At the
    start `Q = 0`, so that `W' = W`. It can be merged.

    Each use of `W` rotates the input, `(x R) W`. For `T` tokens this takes `2 T b in` more FLOPs in
    the forward pass. The rotations are computed once per call, outside of loops. With the exact
    inverse they take about `3 n b^3` FLOPs forward and `4 n b^3` backward. A series of `t` terms
    takes `2 (t - 2) n b^3` forward.

    With `eps` (COFT), a `Q_i` with a Frobenius norm above `eps / sqrt(n)` is scaled down to this
    norm. The gradient ignores the scaling, as in the projected gradient steps of the paper.

    Args:
      block_size: `b`, which must divide `in`.
      block_share: use one rotation for all blocks of a matrix.
      eps: bound on the norm of `Q`, see above; None for no bound.
      neumann_terms: terms of a Neumann series for the inverse, at least 3, or None for the inverse
        itself. `R_i` is then orthogonal up to terms of order `Q^(neumann_terms - 1)`.
      targets: which weights, see `Sites.match_weights`.
      dtype: dtype of the trained arrays; the computation runs in the model's dtype.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'q': [*stack, n, b (b - 1) / 2]}}` (`n = 1` with
      `block_share`).

    Raises:
      ValueError: a block size below 2, fewer than 3 terms, or an `eps` that is not positive; from
        `init`, a block size that does not divide `in`.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.oft(block_size=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['q'].shape
    (2, 1)

    References:
      Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, 2023
      (arXiv:2306.07280), section 3.3; Qiu et al., OFTv2, 2025 (arXiv:2506.19847), section 3, for
      turning the input and not the weight, and for the Neumann series. The code of OFTv2 sums the
      series of `-Q`, so the sign of an adapter changes when it is converted. With COFT the authors
      scale down the trained array itself after each step; here the trained array keeps its values,
      and only the `Q` that acts is scaled down.
    """
    check_positive(block_size=block_size)
    if block_size < 2:
        raise ValueError('block_size 1 has no rotation; write at least block_size=2')
    if is_plain(eps) and eps <= 0:
        raise ValueError(f'eps must be positive, got {eps}; write eps=None for no bound')
    if neumann_terms is not None and neumann_terms < 3:
        raise ValueError(f'neumann_terms must be None or at least 3, got {neumann_terms}')

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        del key
        check_divides(site, 'block_size', block_size, 'input', matrix.shape[0])
        blocks = 1 if block_share else matrix.shape[0] // block_size
        return {'q': jnp.zeros((blocks, block_size * (block_size - 1) // 2), dtype)}

    def rotations(leaves: Leaves) -> Float32[jax.Array, 'blocks block block']:
        skewed = skew(leaves['q'], block_size)
        return cayley(
            _shortened(skewed, leaves['eps']) if 'eps' in leaves else skewed, neumann_terms
        )

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        inverse = jnp.swapaxes(rotations(leaves), 1, 2).astype(matrix.dtype)
        return turn(matrix.T, inverse).T

    def prepare(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Prepared:
        del matrix
        return {**leaves, 'r': rotations(leaves)}

    def apply(leaves: Prepared, use: Use) -> Float[jax.Array, 'T out']:
        return use.forward(turn(use.x, leaves['r'].astype(use.dtype)))

    return weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        own=lambda site: {} if eps is None else {'eps': eps},
        prepare=prepare,
        targets=targets,
        name='oft',
        materialize=materialize,
    )


def _shortened(
    skewed: Float32[jax.Array, 'blocks block block'], eps: Float32[jax.Array, '']
) -> Float32[jax.Array, 'blocks block block']:
    """Blocks scaled to a norm of at most `eps / sqrt(n)`; gradients ignore the scaling."""
    bound = eps / math.sqrt(len(skewed))
    length = jnp.sqrt((skewed**2).sum((1, 2), keepdims=True))
    short = skewed * (bound / jnp.maximum(length, bound))
    return skewed + jax.lax.stop_gradient(short - skewed)
