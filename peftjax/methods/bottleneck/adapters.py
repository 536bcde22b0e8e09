"""Bottleneck adapters under their papers' names."""

from typing import Any

import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.transform import PeftTransform, described, padded_by
from peftjax.methods.bottleneck.bottleneck import bottleneck
from peftjax.methods.bottleneck.reading import Activation


@padded_by('size')
@described
def houlsby(
    *,
    size: int,
    targets: paths.Targets,
    activation: Activation = 'swish',
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Houlsby's adapters: one after each sublayer, before the residual sum.

    `h' = h + f(h D + d) U + u`, see `bottleneck`: `2 m width + m + width` parameters and
    `4 T m width` FLOPs a module. On BERT `targets=r'layers/(attention|ffn)/branch'`, on Llama
    `r'layers/(self_attn|mlp)_branch'`.

    Args:
      size, targets, activation, dtype: see `bottleneck`.

    Returns:
      A transform with the adapter of `bottleneck`; `merge` raises.

    Raises:
      ValueError, TargetError: see `bottleneck`.

    >>> tx = peftjax.houlsby(size=2, targets=r'hidden')
    >>> sorted(tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())[0]['hidden'])
    ['down', 'down_bias', 'up', 'up_bias']

    References:
      Houlsby et al., 2019 (arXiv:1902.00751), section 2.1 and figure 2. The paper leaves `f` open;
      AdapterHub takes swish. The paper also trains the layer norms: chain with
      `select(r'.*/layer_norm/.*')`.
    """
    return bottleneck(size=size, targets=targets, activation=activation, dtype=dtype)


@padded_by('size')
@described
def pfeiffer(
    *,
    size: int,
    targets: paths.Targets,
    activation: Activation = 'relu',
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Pfeiffer's adapters: one for each layer, after the feed-forward sublayer and its norm.

    `h' = h + f(n D + d) U + u` where `n` is the sum of the residual and `h` after the model's own
    norm. The skip connection starts at `h`, before the sum: `2 m width + m + width` parameters and
    `4 T m width` FLOPs a module. `targets` name `branch` modules: `r'layers/ffn/branch'` on BERT,
    `r'layers/mlp_branch'` on Llama, which has no norm after the sum.

    Args:
      size, targets, activation, dtype: see `bottleneck`.

    Returns:
      A transform with the adapter of `bottleneck`; `merge` raises.

    Raises:
      ValueError, TargetError: see `bottleneck`.

    >>> tx = peftjax.pfeiffer(size=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())[0]  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    peftjax.core.paths.TargetError: reads='after' takes array argument 2 of module 'hidden', ...

    References:
      Pfeiffer et al., AdapterFusion, 2020 (arXiv:2005.00247), section 3 and appendix A. Weights
      start as AdapterHub's do, from a normal of deviation 0.02.
    """
    return bottleneck(
        size=size, targets=targets, activation=activation, reads='after', init='bert', dtype=dtype
    )


@padded_by('size')
@described
def parallel_adapter(
    *,
    size: int,
    targets: paths.Targets,
    scale: float | str = 4.0,
    activation: Activation = 'relu',
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Scaled parallel adapters: a bottleneck parallel to a sublayer, not after it.

    `h' = h + s (f(x D + d) U + u)` where `x` is the input of the module: `2 m width + m + width`
    parameters and `4 T m width` FLOPs a module, the identity at the start. At the `branch` modules
    of the models here `x` is the residual: `targets=r'layers/ffn/branch'` on BERT,
    `r'layers/mlp_branch'` on Llama.

    Args:
      size, targets, activation, dtype: see `bottleneck`.
      scale: `s`; `'learned'` trains one number for each module.

    Returns:
      A transform with the adapter of `bottleneck`; `merge` raises.

    Raises:
      ValueError, TargetError: see `bottleneck`.

    >>> tx = peftjax.parallel_adapter(size=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())[0]['hidden']['down'].shape
    (4, 2)

    References:
      He et al., Towards a Unified View, 2021 (arXiv:2110.04366), section 3.3 and table 1; `s = 4`
      and the start (`U = 0`) are the paper's.
    """
    return bottleneck(
        size=size,
        targets=targets,
        activation=activation,
        scale=scale,
        reads='input',
        init='mam',
        dtype=dtype,
    )
