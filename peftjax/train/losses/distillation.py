r"""The loss of a student that learns from the logits of a teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32


def distillation_loss(
    logits: Float[jax.Array, '*batch V'],
    teacher_logits: Float[jax.Array, '*batch V'],
    temperature: float = 2.0,
) -> Float32[jax.Array, '*batch']:
    r"""The divergence of the student's softened distribution from the teacher's.

    .. math::
        L = T^2\,\mathrm{KL}\left(\mathrm{softmax}(u / T)\,\|\,\mathrm{softmax}(z / T)\right)

    with the teacher's logits `u` and the student's `z`. The factor :math:`T^2` keeps the gradient
    of about the same size for every temperature. The teacher gets no gradient.

    Args:
        logits, teacher_logits: of the same classes; they are converted to float32.
        temperature: `T`, above 0.

    Returns:
        One loss for each position, float32; 0 if both have the same distribution.

    Example:
        >>> student, teacher = jnp.asarray([0.0, 0.0]), jnp.asarray([0.0, 2.0])
        >>> round(float(distillation_loss(student, teacher, temperature=1.0)), 4)
        0.3278
        >>> float(distillation_loss(teacher, teacher + 1.0))
        0.0

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2, whose cross-entropy with soft targets
    differs from the divergence by a constant.
    """
    teacher = jax.lax.stop_gradient(teacher_logits.astype(jnp.float32))
    wanted = jax.nn.log_softmax(teacher / temperature, axis=-1)
    found = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    # Where the teacher gives no probability at all, 0 * log 0 is 0.
    terms = jnp.where(jnp.isneginf(wanted), 0.0, jnp.exp(wanted) * (wanted - found))
    return temperature**2 * terms.sum(-1)
