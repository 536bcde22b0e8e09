"""Unions of methods that have a name in papers, as chains of these methods."""

from typing import Any

import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.combine import chain
from peftjax.core.transform import PeftTransform, described
from peftjax.methods.bottleneck.adapters import parallel_adapter
from peftjax.methods.bottleneck.bottleneck import bottleneck
from peftjax.methods.bottleneck.reading import Activation, Reads
from peftjax.methods.gated import gated
from peftjax.methods.low_rank.lora import lora
from peftjax.methods.prompts.prefix_tuning import prefix_tuning


@described
def mam(
    *,
    cores: paths.Targets,
    branches: paths.Targets,
    num_virtual_tokens: int = 30,
    projection: int | None = 512,
    size: int = 512,
    scale: float = 4.0,
    activation: Activation = 'relu',
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""MAM adapter: prefix tuning, and a scaled parallel adapter beside the feed-forward.

    `chain(prefix_tuning(...), parallel_adapter(...))`: see there for the formulas, the starts and
    the costs, which add up. It acts on activations, so `merge` raises.

    Args:
      cores: attention cores, see `prefix_tuning`.
      branches: the ends of feed-forward sublayers, see `parallel_adapter`.
      num_virtual_tokens, projection: of the prefix; positions are not shifted.
      size, scale, activation: of the parallel adapter.
      dtype: of the trained arrays.

    Returns:
      A transform whose adapter is a pair, one part for each method.

    Raises:
      ValueError, TargetError: see `prefix_tuning` and `parallel_adapter`.

    >>> tx = peftjax.mam(cores=r'.*/core', branches=r'.*/ffn/branch', size=8)

    References:
      He et al., Towards a Unified View of Parameter-Efficient Transfer Learning, 2021
      (arXiv:2110.04366), section 4.6: 30 virtual tokens, a bottleneck of 512, a scale of 4.
    """
    return chain(
        prefix_tuning(
            num_virtual_tokens=num_virtual_tokens,
            projection=projection,
            shift_positions=False,
            targets=cores,
            dtype=dtype,
        ),
        parallel_adapter(
            size=size, scale=scale, activation=activation, targets=branches, dtype=dtype
        ),
    )


@described
def unipelt(
    *,
    cores: paths.Targets,
    kernels: paths.Targets,
    branches: paths.Targets,
    num_virtual_tokens: int = 10,
    projection: int | None = 512,
    rank: int = 8,
    alpha: float | None = None,
    size: int = 48,
    activation: Activation = 'swish',
    reads: Reads = 'after',
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""UniPELT: LoRA, prefix tuning and a bottleneck adapter, each with a trained gate.

    `chain(gated(lora(...)), prefix_tuning(..., gate=True), bottleneck(..., gate=True))`: see there
    for the formulas, the starts and the costs, which add up. It acts on activations, so `merge`
    raises.

    Args:
      cores: attention cores, see `prefix_tuning`.
      kernels: of LoRA, in the paper query and value.
      branches: the ends of feed-forward sublayers, see `pfeiffer`.
      num_virtual_tokens, projection: of the prefix; positions are not shifted.
      rank, alpha: of LoRA; `alpha = rank` by default.
      size, activation, reads: of the adapter.
      dtype: of the trained arrays.

    Returns:
      A transform whose adapter is a triple, one part for each method.

    Raises:
      ValueError, TargetError: see the three.

    >>> tx = peftjax.unipelt(cores=r'.*/core', kernels=r'.*/(query|value)', branches=r'.*/branch')

    References:
      Mao et al., UniPELT, 2021 (arXiv:2110.07577), section 3.2 and appendix A: 10 virtual tokens,
      rank 8, a bottleneck of 48.
    """
    return chain(
        gated(lora(rank=rank, alpha=alpha, targets=kernels, dtype=dtype)),
        prefix_tuning(
            num_virtual_tokens=num_virtual_tokens,
            projection=projection,
            gate=True,
            shift_positions=False,
            targets=cores,
            dtype=dtype,
        ),
        bottleneck(
            size=size,
            reads=reads,
            activation=activation,
            init='bert',
            gate=True,
            targets=branches,
            dtype=dtype,
        ),
    )
