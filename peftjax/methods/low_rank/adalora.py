"""AdaLoRA: a low-rank change as singular triplets; training keeps the important triplets."""

from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Adapter, Entry
from peftjax.core.promotion import lifted
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described, padded_by
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.low_rank.low_rank import LowRank, check_alpha

Leaves = TypedDict(
    'Leaves',
    {
        'p': Float[jax.Array, 'in rank'],
        'lambda': Float[jax.Array, ' rank'],
        'q': Float[jax.Array, 'rank out'],
        'scale': NotRequired[Float[jax.Array, '']],
        'dropout': NotRequired[Float[jax.Array, '']],
    },
)


@padded_by('init_rank')
@described
def adalora(
    *,
    init_rank: int,
    targets: paths.Targets,
    alpha: float | None = None,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Adaptive low-rank adaptation: `W' = W + s P diag(lambda) Q`.

    For `W: [in, out]`, `P: [in, r]`, `lambda: [r]`, `Q: [r, out]` and `s = alpha / (r + 1e-5)`,
    a use computes `x W + (drop(x) P) (s lambda Q)`: with `T` tokens `2 T r (in + out) + T out +
    r (out + 1)` more FLOPs in the forward pass. At the start `lambda = 0` and `P`, `Q ~ N(0,
    0.02^2)`, so that `W' = W`. It can be merged. Training brings `P` and `Q` near orthogonality by
    `orthogonality`, and `adalora_allocation` sets the least important entries of `lambda` to zero.
    So only a part of the `r (in + out + 1)` parameters for each matrix remains.

    Args:
      init_rank: `r`, of every matrix before the allocation.
      targets: which weights, see `Sites.match_weights`.
      alpha: numerator of the scale; `init_rank` by default.
      dropout: dropout rate on the input of the low-rank branch; active when `predict` gets an
        `adapter_key`; lookups have none.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'p': [*stack, in, r], 'lambda': [*stack, r],
      'q': [*stack, r, out]}}`.

    Raises:
      ValueError: a rank below 1, or a rate outside [0, 1).
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.adalora(init_rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['lambda'].shape
    (2,)

    References:
      Zhang et al., AdaLoRA, 2023 (arXiv:2303.10512), equation 3. The paper's weight is
      `[out, in]`: its `Q` is our `P` transposed and its `P` our `Q` transposed. The scale and the
      deviation 0.02 are the authors' code's; the scale keeps the first rank when triplets go.
    """
    settings = LowRank(init_rank, alpha, dropout=dropout, dtype=dtype)
    check_alpha(alpha)
    scale = (init_rank if alpha is None else alpha) / (init_rank + 1e-5)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        first, second = jax.random.split(key)
        return {
            'p': 0.02 * jax.random.normal(first, (matrix.shape[0], init_rank), dtype),
            'lambda': jnp.zeros((init_rank,), dtype),
            'q': 0.02 * jax.random.normal(second, (init_rank, matrix.shape[1]), dtype),
        }

    def own(site: WeightSite) -> dict[str, float]:
        return {**settings.own(site), 'scale': scale}

    def scaled(leaves: Leaves) -> Float[jax.Array, 'rank out']:
        return (leaves['scale'] * leaves['lambda'])[:, None] * leaves['q']

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        return matrix + leaves['p'] @ scaled(leaves)

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, '...']:
        return use.forward(use.x) + use.lowrank(
            use.dropped(leaves.get('dropout')), leaves['p'], scaled(leaves)
        )

    return weightwise(
        init_weight, merge, apply, own=own, name='adalora', targets=targets, materialize=materialize
    )


def is_triplet(entry: Any) -> bool:
    """Whether this is what `adalora` keeps for one leaf."""
    return isinstance(entry, Entry) and set(entry) == {'p', 'lambda', 'q'}


def orthogonality(adapter: Adapter, squared: bool = True) -> Float32[jax.Array, '']:
    r"""How far AdaLoRA's factors are from orthogonal. Add it to the loss with a weight.

    With `squared`, the sum over all matrices of `|P^T P - I|^2 + |Q Q^T - I|^2`, in Frobenius
    norms; without, the mean over all `P` and `Q` of the norms themselves.

    Args:
      adapter: of `adalora`, or of a chain that holds one; a layer of a stack counts as a matrix.
      squared: the paper's form (True) or that of the authors' code (False).

    Returns:
      A scalar, float32.

    Raises:
      ValueError: the adapter holds no triplets.

    >>> tx = peftjax.adalora(init_rank=2, targets=r'hidden')
    >>> adapter, frozen = tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())
    >>> bool(peftjax.orthogonality(adapter) > 3.9)  # Two identities [2, 2], and near-zero factors.
    True

    References:
      Zhang et al., AdaLoRA, 2023 (arXiv:2303.10512), equation 4, squared; the authors' code
      leaves the square out and divides by the number of factors.
    """
    entries = [each for each in jax.tree.leaves(adapter, is_leaf=is_triplet) if is_triplet(each)]
    if not entries:
        raise ValueError('the adapter holds no triplets p, lambda, q; those of adalora have them')
    grams = []
    for entry in entries:
        p, q = entry['p'].astype(jnp.float32), entry['q'].astype(jnp.float32)
        grams += [jnp.swapaxes(p, -1, -2) @ p, q @ jnp.swapaxes(q, -1, -2)]
    squares = jnp.concatenate([_distance(gram).ravel() for gram in grams])
    # The slope of the root is infinite at zero; an epsilon avoids that.
    tiny = jnp.finfo(jnp.float32).tiny
    return squares.sum() if squared else jnp.sqrt(jnp.maximum(squares, tiny)).mean()


def _distance(gram: Float[jax.Array, '*stack rank rank']) -> Float[jax.Array, '*stack']:
    """`|G - I|^2` of each matrix."""
    return jnp.square(gram - lifted(jnp.eye(gram.shape[-1]), gram)).sum((-2, -1))
