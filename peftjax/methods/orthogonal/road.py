"""RoAd: pairs of output features are turned and stretched."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.promotion import lifted
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.biases import with_biases
from peftjax.methods.blocks import check_divides

_SIZES = {1: 0.5, 2: 1, 4: 2}


@described
def road(
    *,
    targets: paths.Targets,
    variant: int = 1,
    group_size: int = 64,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Rotary adaptation: `y' = R y`, `R` of blocks `[[a cos t, -a sin t], [a sin t, a cos t]]`.

    Here `y = x W + b` with `W: [in, out]`. Feature `i` of the first half of a group is paired with
    feature `i` of its second half. `variant=1` trains one angle `t` and one length `a` for each
    pair, `variant=2` one angle and one length for each row of a block, and `variant=4` for each
    entry. A use costs `3.5 T out` FLOPs in the forward pass, `17 T out` in a step. At the start `t
    = 0` and `a = 1`, so that `R = I`. It merges into matrix and bias.

    Args:
      targets: which weights, see `Sites.match_weights`.
      variant: 1, 2 or 4.
      group_size: the number of features in a group, an even divisor of `out`.
      dtype: of the trained arrays; the computation runs in the model's dtype.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'theta': [*stack, variant out / 2], 'alpha': the
      same}}`, `variant out` parameters for each matrix; `'alpha_and_bias'` in place of `'alpha'`
      where the module has a bias, which is turned as well.

    Raises:
      ValueError: an unknown variant or an odd group size; from `init`, a group size that does not
        divide `out`.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.road(group_size=4, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['theta'].shape
    (4,)

    References:
      Liao and Monz, 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and
      Composability, 2024 (arXiv:2409.00119), section 3, equation 4.
    """
    if variant not in _SIZES:
        raise ValueError(f'variant must be 1, 2 or 4, got {variant}')
    if group_size < 2 or group_size % 2:
        raise ValueError(f'group_size must be even and at least 2, got {group_size}')

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> dict[str, Float[jax.Array, ' angles']]:
        del key
        check_divides(site, 'group_size', group_size, 'output', matrix.shape[1])
        size = int(_SIZES[variant] * matrix.shape[1])
        name = 'alpha_and_bias' if site.bias else 'alpha'
        return {'theta': jnp.zeros(size, dtype), name: jnp.ones(size, dtype)}

    def coefficients(
        leaves: Mapping[str, Any],
    ) -> tuple[Float[jax.Array, '*stack out'], Float[jax.Array, '*stack out']]:
        """The factors of each feature and of its partner, both `[*stack, out]`."""
        alpha = leaves['alpha' if 'alpha' in leaves else 'alpha_and_bias']
        cosine, sine = alpha * jnp.cos(leaves['theta']), alpha * jnp.sin(leaves['theta'])
        if variant == 2:
            return cosine, sine
        stack = alpha.shape[:-1]
        if variant == 4:  # The first half of a group's numbers gives the cosines.
            groups = (*stack, -1, 2, group_size)
            first, second = cosine.reshape(groups)[..., 0, :], sine.reshape(groups)[..., 1, :]
            return first.reshape(*stack, -1), second.reshape(*stack, -1)

        def twice(each: Float[jax.Array, '*stack angles']) -> Float[jax.Array, '*stack out']:
            halves = each.reshape(*stack, -1, 1, group_size // 2)
            return jnp.repeat(halves, 2, axis=-2).reshape(*stack, -1)

        return twice(cosine), twice(sine)

    def turned(
        leaves: Mapping[str, Any], y: Float[jax.Array, '*T out']
    ) -> Float[jax.Array, '*T out']:
        first, second = coefficients(leaves)
        halves = y.reshape(*y.shape[:-1], -1, 2, group_size // 2)
        partner = jnp.stack([-halves[..., 1, :], halves[..., 0, :]], axis=-2).reshape(y.shape)
        first, second = (lifted(each.astype(y.dtype), y) for each in (first, second))
        return y * first + partner * second

    def merge(
        leaves: Mapping[str, Any], matrix: Float[jax.Array, 'in out']
    ) -> Float[jax.Array, 'in out']:
        return turned(leaves, matrix)

    def apply(leaves: Mapping[str, Any], use: Use) -> Float[jax.Array, 'T out']:
        return turned(leaves, use.forward(use.x))

    kernels = weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        targets=targets,
        name='road',
        materialize=materialize,
    )
    return with_biases(kernels, turned, 'alpha_and_bias')
