"""LoRA-FA: LoRA whose first factor is random and frozen."""

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Inexact, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.core.shapes import HostArray
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.draws import stream
from peftjax.methods.low_rank.low_rank import LowRank


class Trained(TypedDict):
    b: Float[jax.Array, 'rank out']


class Leaves(Trained):
    a: Float[HostArray, 'in rank']
    scale: NotRequired[Inexact[jax.Array, '']]
    dropout: NotRequired[Float32[jax.Array, '']]


@described
def lora_fa(
    *,
    rank: int,
    targets: paths.Targets,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    a: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""LoRA with frozen `A`: `W' = W + s A B`, only `B` trains.

    For `W: [in, out]`, `A: [in, r]` drawn from `U(-1/sqrt(in), 1/sqrt(in))`, `B: [r, out]`: forward
    as LoRA, `2 T r (in + out) + 2 T out` more FLOPs, in a step `4 T r (in + out) + 2 T r out + 6 T
    out`; for its gradient a step keeps `x A: [T, r]` and not `x: [T, in]`. At the start `B = 0`, so
    that `W' = W`. It can be merged.

    Args:
      rank, alpha, rslora, dropout: as in `lora`.
      seed: of `A`, which is in `frozen.own`. Every matrix has its own.
      a: `{leaf path: A}` to use instead of random draws, for all targets, in float32.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'b': [*stack, r, out]}}`: `r out` parameters for
      each matrix.

    Raises:
      ValueError, TargetError: as `lora`; from `init`, an `A` that is missing, has another shape, or
        belongs to a leaf that is not a target.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora_fa(rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['b'].shape
    (2, 8)

    References:
      Zhang et al., LoRA-FA, 2023 (arXiv:2308.03303), section 3.1. The paper draws `A` from a
      normal.
    """
    settings = LowRank(rank, alpha, rslora, dropout, dtype=dtype)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Trained:
        del key
        return {'b': jnp.zeros((rank, matrix.shape[1]), dtype)}

    def own(site: WeightSite) -> dict[str, Any]:
        layout = site.layout
        assert layout is not None
        bound = 1.0 / math.sqrt(layout.inputs)
        shape = (*layout.stack_shape, layout.inputs, rank)
        if a is None:
            drawn = stream(seed, site.path).uniform(-bound, bound, shape).astype(np.float32)
            return {'a': drawn, **settings.own(site)}
        if site.path not in a or np.shape(a[site.path]) != shape:
            found = np.shape(a[site.path]) if site.path in a else 'nothing'
            raise ValueError(
                f'a gives {found} for {site.path!r}, which needs an array of {shape}'
                f'{paths.nearby(site.path, a)}'
            )
        return {'a': jnp.asarray(a[site.path], jnp.float32), **settings.own(site)}

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        return settings.sum(leaves, matrix)

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, '...']:
        return use.forward(use.x) + settings.added(leaves, use)

    transform = weightwise(
        init_weight, merge, apply, own=own, name='lora_fa', targets=targets, materialize=materialize
    )

    def start(key: PRNGKeyArray, model: Model) -> Any:
        adapter = transform.start(key, model)
        if extra := sorted(set(a or ()) - set(adapter)):
            raise ValueError(f'a gives arrays for {extra[:4]}, which the targets do not cover')
        return adapter

    return transform.replace(start=start)
