"""Attention by the kernel that fits the call."""

import jax

from peftjax.core.masks import Mask
from peftjax.models.plain import attend_plainly


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: tuple[float, jax.Array] | None = None,
    implementation: str | None = None,
) -> jax.Array:
    del implementation
    return attend_plainly(
        query,
        key,
        value,
        Mask() if mask is None else mask,
        bias=bias,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        dropout=dropout,
    )
