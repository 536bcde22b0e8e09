r"""Losses of sentence encoders, which compare a text's match with other texts of the batch."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Float32, Shaped

from peftjax.core.shapes import HostArray


def mean_pool(
    states: Float[jax.Array, 'B T D'], mask: Shaped[HostArray, 'B T']
) -> Float32[jax.Array, 'B D']:
    """The mean of the states of real tokens, `[B, D]` float32; zeros for a row without real tokens.

    Example:
        >>> states = jnp.asarray([[[1.0], [3.0], [50.0]]])
        >>> mean_pool(states, jnp.asarray([[1, 1, 0]])).tolist()
        [[2.0]]

    Source: Reimers and Gurevych 2019 (arXiv:1908.10084), section 3.
    """
    kept = mask.astype(bool)[:, :, None]
    sums = jnp.where(kept, states.astype(jnp.float32), 0.0).sum(1)
    return sums / jnp.maximum(kept.sum(1, dtype=jnp.float32), 1.0)


def unit(vectors: Float[jax.Array, 'N D']) -> Float32[jax.Array, 'N D']:
    """Each vector divided by its length, float32; a zero vector stays zero, with a finite gradient.

    Example:
        >>> [round(each, 2) for each in unit(jnp.asarray([[3.0, 4.0]]))[0].tolist()]
        [0.6, 0.8]
    """
    wide = vectors.astype(jnp.float32)
    squares = jnp.maximum((wide * wide).sum(-1, keepdims=True), 1e-24)
    return wide * jax.lax.rsqrt(squares)


def info_nce_loss(
    anchors: Float[jax.Array, 'B D'],
    candidates: Float[jax.Array, 'C D'],
    excluded: Bool[HostArray, 'B C'] | None = None,
    scale: float = 20.0,
) -> Float32[jax.Array, ' B']:
    r"""Cross-entropy of each anchor's own candidate among all, by the cosine of their angle.

    .. math:: L_i = -\log\frac{e^{s\cos(a_i, c_i)}}{\sum_{j \notin E_i} e^{s\cos(a_i, c_j)}}

    Candidate `i` belongs to anchor `i`; those after the first `B` are negatives of all anchors.

    Args:
        anchors, candidates: vectors of texts, of any length; `C` is at least `B`.
        excluded: :math:`E_i`, candidates that are no negatives of an anchor: padding, or further
            right answers. An anchor's own candidate always counts.
        scale: `s`, the inverse of the temperature.

    Returns:
        `[B]` float32.

    Example:
        >>> vectors = jnp.eye(2)
        >>> [round(float(each), 4) for each in info_nce_loss(vectors, vectors, scale=1.0)]
        [0.3133, 0.3133]

    Source: van den Oord et al. 2018 (arXiv:1807.03748), equation 4; with in-batch negatives,
    Henderson et al. 2017 (arXiv:1705.00652), section 4.4. `MultipleNegativesRankingLoss` of
    sentence-transformers has the same scale and excludes nothing.
    """
    logits = scale * (unit(anchors) @ unit(candidates).T)
    own = jnp.arange(anchors.shape[0])
    if excluded is not None:
        theirs = own[:, None] != jnp.arange(candidates.shape[0])[None]
        logits = jnp.where(excluded & theirs, jnp.finfo(jnp.float32).min, logits)
    return optax.softmax_cross_entropy_with_integer_labels(logits, own)
