"""T-Few's losses over answer choices: the likely one, the unlikely ones, and their lengths.

Letters: `B` examples, `C` choices of an example, `L` tokens of a choice. `log_probs: [B, C, L]` are
the log-probabilities of each choice's tokens given the question, `mask: [B, C, L]` is 1 where there
is a token, `answers: [B]` are the numbers of the right choices. A missing choice has no tokens: its
mask is zero everywhere.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Float32, Integer, Shaped

from peftjax.core.shapes import HostArray


def length_normalised_loss(
    log_probs: Float[jax.Array, 'B C L'],
    mask: Shaped[HostArray, 'B C L'],
    answers: Integer[HostArray, ' B'],
    exponent: float = 1.0,
) -> Float32[jax.Array, '']:
    r"""Cross-entropy over choices scored by the mean log-probability of their tokens.

    `L = mean_B(-log softmax_C(beta)[answer])` with `beta = sum_L log p / L^exponent`.

    Args:
        log_probs, mask, answers: see the module's docstring.
        exponent: of the length; 1 is the mean, 0 the sum.

    Returns:
        A scalar, float32.

    Example:
        >>> log_probs = jnp.log(jnp.asarray([[[0.5, 0.5], [0.25, 1.0]]]))
        >>> mask = jnp.asarray([[[1, 1], [1, 0]]])
        >>> round(float(length_normalised_loss(log_probs, mask, jnp.asarray([0]))), 4)
        0.4055

    References:
        Liu et al., T-Few, 2022 (arXiv:2205.05638), section 3.2, equation 2; the exponent is from
        the authors' code.
    """
    scores = choice_scores(log_probs, mask, exponent)
    return optax.softmax_cross_entropy_with_integer_labels(scores, answers).mean()


def choice_scores(
    log_probs: Float[jax.Array, 'B C L'],
    mask: Shaped[HostArray, 'B C L'],
    exponent: float = 1.0,
) -> Float32[jax.Array, 'B C']:
    r"""The scores of choices: `beta = sum_L log p / L^exponent`, `[B, C]` float32.

    A missing choice has the least float32.

    Example:
        >>> log_probs = jnp.log(jnp.asarray([[[0.5, 0.5], [0.25, 1.0]]]))
        >>> scores = choice_scores(log_probs, jnp.asarray([[[1, 1], [1, 0]]]))
        >>> [round(float(score), 4) for score in scores[0]]
        [-0.6931, -1.3863]

    References:
        Liu et al., T-Few, 2022 (arXiv:2205.05638), section 3.2.
    """
    kept = mask.astype(bool)
    lengths = kept.sum(-1)
    sums = jnp.where(kept, log_probs.astype(jnp.float32), 0.0).sum(-1)
    scores = sums / jnp.maximum(lengths, 1).astype(jnp.float32) ** exponent
    # A finite score for missing choices: with minus infinity a gradient could be undefined.
    return jnp.where(lengths > 0, scores, jnp.finfo(jnp.float32).min)


def unlikelihood_loss(
    log_probs: Float[jax.Array, 'B C L'],
    mask: Shaped[HostArray, 'B C L'],
    answers: Integer[HostArray, ' B'],
    margin: float = 1e-2,
) -> Float32[jax.Array, '']:
    r"""Pushes the tokens of wrong choices down: mean of `-log(1 - p + margin)` over them.

    Args:
        log_probs, mask, answers: see the module's docstring.
        margin: keeps the logarithm finite where `p = 1`; 0 is the formula as printed, whose
            gradient is not finite there.

    Returns:
        A scalar, float32; 0 if there is no wrong choice.

    Example:
        >>> log_probs = jnp.log(jnp.asarray([[[0.9, 0.9], [0.51, 1.0]]]))
        >>> mask = jnp.asarray([[[1, 1], [1, 0]]])
        >>> round(float(unlikelihood_loss(log_probs, mask, jnp.asarray([0]))), 4)
        0.6931

    References:
        Liu et al., T-Few, 2022 (arXiv:2205.05638), section 3.2, equation 1; the margin is from the
        authors' code and in no formula. Their code also adds `-log(1 + margin)` for every position
        that is padding or of the right choice; we count only the tokens of wrong choices.
    """
    wrong = jnp.arange(mask.shape[1])[None] != answers[:, None]
    counted = mask.astype(bool) & wrong[:, :, None]
    # Tokens that do not count may have any value, even minus infinity: they enter as p = 0.
    probs = jnp.exp(jnp.where(counted, log_probs.astype(jnp.float32), -jnp.inf))
    losses = jnp.where(counted, -jnp.log(1.0 - probs + margin), 0.0)
    return losses.sum() / jnp.maximum(counted.sum(dtype=losses.dtype), 1.0)
