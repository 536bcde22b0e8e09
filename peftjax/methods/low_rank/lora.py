"""LoRA: a trained low-rank term beside every frozen matrix."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Inexact

from peftjax.core import paths
from peftjax.core.transform import PeftTransform, described, padded_by
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.low_rank import lora_bias, lora_init
from peftjax.methods.low_rank.low_rank import LowRank, LowRankLeaves


@padded_by('rank')
@described
def lora(
    *,
    rank: int,
    targets: paths.Targets,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    init: str | Mapping[str, Any] = 'kaiming',
    bias: bool = False,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Low-rank adaptation: `W' = W + s A B`.

    For `W: [in, out]`, `A: [in, r]`, `B: [r, out]` and `s = alpha / r` (`alpha / sqrt(r)` with
    `rslora`), a use computes `x W + s (drop(x) A) B`: `2 T r (in + out)` more FLOPs in the forward
    pass, and no further product of the size of `W`. At the start `B = 0` and `A ~ U(-1/sqrt(in),
    1/sqrt(in))`, so that `W' = W`; for an embedding, `A = 0` and `B ~ N(0, 1)`, since its rows are
    looked up.

    Args:
      rank: `r`. It may exceed the smaller side of a matrix, except with `'pissa'` and `'olora'`.
      targets: which weights, see `Sites.match_weights`.
      alpha: numerator of the scale; `rank` (a scale of 1) by default.
      rslora: scale by `alpha / sqrt(rank)`, so that large ranks learn at the same speed.
      dropout: dropout rate on the input of the low-rank branch; active when `predict` gets an
        `adapter_key`; lookups have none.
      rank_pattern, alpha_pattern: `{regex: value}` for some of the targets; the first full match
        on the leaf's or module's path counts.
      init: how `A` and `B` start. `'kaiming'`: as above. `'gaussian'`: `A ~ N(0, 1/r^2)`.
        `'pissa'`: `s A B` is the closest matrix to `W` of rank `r`; `'olora'`: the first `r` terms
        of the QR decomposition of `W^T`. These two move a part of `W` into the adapter:
        `frozen.params` holds the rest, `W - s A B` with the initial `A` and `B`. Or
        `{leaf path: A}`, with `B = 0`, as `eva` makes it.
      bias: also train a bias `c: [out]` of the low-rank branch, which adds `s c` to the module's
        output. It starts at 0 and merges into the module's own bias. If the module has no bias, the
        adapter cannot be merged.
      dtype: of `A` and `B`; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'a': [*stack, in, r], 'b': [*stack, r, out]}}`.
      With `bias` there is `'bias': [*stack, out]` too, called `'shift'` beside a matrix without a
      bias of its own.

    Raises:
      ValueError: a rank below 1, a rate outside [0, 1), an unknown `init`, a start from the weight
        with `bias`; or from `init`, with the path, a given `A` of another shape, a start from the
        weight with a rank above the smaller side of a matrix, or a `bias` beside an embedding.
      TargetError: from `init`, see `Sites.match_weights`; or a pattern for rank or alpha matches
        none of the targets.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> adapter['hidden/kernel']['a'].shape, adapter['hidden/kernel']['b'].shape
    ((4, 2), (2, 8))

    References:
      Hu et al., LoRA, 2021 (arXiv:2106.09685), section 4.1, equation 3; Kalajdzievski, rsLoRA,
      2023 (arXiv:2312.03732), theorem 3.2. The paper draws `A` from a Gaussian; the authors' code
      and we draw the uniform above (Kaiming with a = sqrt(5)). Starts: Meng et al., PiSSA, 2024
      (arXiv:2404.02948), equations 2 to 4, by the exact decomposition where the authors' code also
      offers a randomised one; Büyükakyüz, OLoRA, 2024 (arXiv:2406.01775); Paischer et al., EVA,
      2024 (arXiv:2410.07170). The bias of the branch is no part of a paper: Hugging Face's peft has
      it as `lora_bias`.
    """
    start = init if isinstance(init, str) else 'kaiming'
    settings = LowRank(rank, alpha, rslora, dropout, rank_pattern, alpha_pattern, dtype, start)

    def merge(
        leaves: LowRankLeaves, matrix: Inexact[jax.Array, 'in out']
    ) -> Inexact[jax.Array, 'in out']:
        return settings.sum(leaves, matrix)

    def apply(leaves: LowRankLeaves, use: Use) -> Inexact[jax.Array, '...']:
        return lora_bias.shifted(leaves, use.forward(use.x) + settings.added(leaves, use))

    def remainder(
        leaves: LowRankLeaves, matrix: Inexact[jax.Array, 'in out']
    ) -> Inexact[jax.Array, 'in out']:
        return settings.sum(leaves, matrix, sign=-1.0)

    from_weight = start in lora_init.FROM_WEIGHT
    if bias and from_weight:
        raise ValueError(f'init={start!r} starts from the weight and has no bias; leave bias out')
    transform = settings.checked(
        weightwise(
            lora_bias.beside(settings.factors, dtype) if bias else settings.factors,
            merge,
            apply,
            own=settings.own,
            remainder=remainder if from_weight else None,
            targets=targets,
            # Factors that start from a part of the weights need the rest of the weights beside
            # them.
            name=start if from_weight else lora_bias.NAME if bias else 'lora',
            materialize=materialize,
            takes_complex=not from_weight,
        )
    )
    if bias:
        transform = lora_bias.in_force(transform)
    return transform if isinstance(init, str) else lora_init.starting_from(transform, init)
