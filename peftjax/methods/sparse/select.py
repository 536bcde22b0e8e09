"""Selective methods: train some of the base's own leaves (BitFit, LayerNorm tuning, heads)."""

from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.leafwise import leafwise
from peftjax.core.transform import PeftTransform, described


@described
def select(targets: paths.Targets, *, dtype: Any = jnp.float32) -> PeftTransform:
    r"""Trains the chosen leaves of the model themselves; all others stay frozen.

    Each chosen leaf `w` moves into the adapter, and `frozen.params` has a `Hole` in its place. The
    copy that trains is float32 for any dtype of the model, since small steps vanish in bfloat16;
    the model computes with it in its own dtype. BitFit is `select(r'.*/bias')`, the tuning of layer
    norms `select(r'.*norm/(scale|bias)')`, a new head `select(r'classifier/.*')`. It adds no FLOPs
    in the forward pass; the gradient of a chosen kernel is dense, `2 T in out` in a step. It can be
    merged.

    Args:
      targets: regular expressions, full match on leaf paths.
      dtype: of the trained copies; `None` for the dtype of each leaf. The state of the optimiser
        has the same dtype: 7B parameters in float16 are 14 GB of weights and 28 GB of moments.

    Returns:
      A transform whose adapter is `{leaf path: leaf}`.

    Raises:
      TargetError: from `init`, if a pattern matches no leaf.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> adapter, frozen = peftjax.select(r'.*/bias').init(jax.random.key(0), mlp)
    >>> {path: leaf.shape for path, leaf in adapter.items()}
    {'hidden/bias': (8,), 'out/bias': (3,)}

    References:
      Ben Zaken et al., BitFit, 2021 (arXiv:2106.10199), section 3; Zhao et al., Tuning LayerNorm in
      Attention, 2023 (arXiv:2312.11420), section 3.
    """
    return leafwise(
        'select',
        lambda leaf, site: trained_copy(leaf, dtype),
        lambda entry, leaf, own: entry,
        lambda model: model.sites.match_leaves(targets),
        lambda entry, leaf, own: entry.shape == leaf.shape,
        keeps='nothing',
    )


def trained_copy(leaf: jax.Array, dtype: Any) -> jax.Array:
    """`leaf` in `dtype`, in its own buffer: training steps donate the copy, never the base."""
    if dtype is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
        dtype = leaf.dtype
    elif jnp.finfo(dtype).bits < jnp.finfo(leaf.dtype).bits and dtype == jnp.float32:
        dtype = leaf.dtype  # The default widens; a float64 model is not rounded.
    return jnp.array(leaf, dtype, copy=True)


@described
def full(*, dtype: Any = jnp.float32) -> PeftTransform:
    r"""Full fine-tuning, the baseline: `select(r'.*')`.

    Args:
      dtype: see `select`.

    Returns:
      A transform whose adapter holds every leaf of the model; `frozen.params` holds none.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> peftjax.summary(peftjax.full(), mlp).percent_of_base
    100.0
    """
    return select(r'.*', dtype=dtype)
