"""LoRA: a trained low-rank term beside every frozen matrix."""

import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core import paths
from peftjax.core.base import Model, PeftTransform, Use
from peftjax.core.sites import WeightSite
from peftjax.core.weightwise import weightwise


def lora(
    *,
    rank: int,
    targets: paths.Targets,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Low-rank adaptation: `W' = W + s A B`.

    For `W: [in, out]`, `A: [in, r]`, `B: [r, out]` and `s = alpha / r` (`alpha / sqrt(r)` with
    `rslora`), a use computes `x W + s (drop(x) A) B`: `2 T r (in + out)` more FLOPs forward, and
    never a product of the size of `W`. At the start `B = 0` and `A ~ U(-1/sqrt(in), 1/sqrt(in))`,
    so that `W' = W`; for an embedding, `A = 0` and `B ~ N(0, 1)`, since its rows are looked up.

    Args:
      rank: `r`, at most the smaller side of each matrix.
      targets: which weights, see `Sites.match_weights`.
      alpha: numerator of the scale; `rank` (a scale of 1) by default.
      rslora: scale by `alpha / sqrt(rank)`, which keeps large ranks learning.
      dropout: rate on the input of the low-rank branch, in force when `predict` is given an
        `adapter_key`; lookups have none.
      rank_pattern, alpha_pattern: `{regex: value}` for some of the targets; the first full match
        on the leaf's or module's path counts.
      dtype: of `A` and `B`; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'a': [*stack, in, r], 'b': [*stack, r, out]}}`.

    Raises:
      ValueError: a rank below 1, a rate outside [0, 1), or from `init` a rank above the
        smaller side of a matrix, with its path.
      TargetError: from `init`, see `Sites.match_weights`; or a pattern for rank or alpha matches
        no weight of the model.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> adapter = tx.init(jax.random.key(0), mlp)
    >>> adapter['hidden/kernel']['a'].shape, adapter['hidden/kernel']['b'].shape
    ((4, 2), (2, 8))

    References:
      Hu et al., LoRA, 2021 (arXiv:2106.09685), section 4.1, equation 3; Kalajdzievski, rsLoRA,
      2023 (arXiv:2312.03732), theorem 3.2. The paper draws `A` from a Gaussian; the authors' code
      and we draw the uniform above (Kaiming with a = sqrt(5)).
    """
    for each in (rank, *(rank_pattern or {}).values()):
        if not isinstance(each, (int, np.integer)) or each < 1:
            raise ValueError(f'rank must be a whole number of at least 1, got {each!r}')
    exceptions = (*(rank_pattern or {}), *(alpha_pattern or {}))
    patterns = paths.patterns_of(exceptions) if exceptions else ()
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f'dropout is a rate in [0, 1), got {dropout}')

    def scale_of(path: str) -> float:
        at_rank = paths.first_match(rank_pattern, path, rank)
        default = at_rank if alpha is None else alpha
        at_alpha = paths.first_match(alpha_pattern, path, default)
        return at_alpha / (math.sqrt(at_rank) if rslora else at_rank)

    def init_weight(key: jax.Array, matrix: jax.Array, site: WeightSite) -> dict[str, jax.Array]:
        inputs, outputs = matrix.shape
        at_rank = paths.first_match(rank_pattern, site.path, rank)
        if at_rank > min(inputs, outputs):
            raise ValueError(
                f'rank {at_rank} is larger than {site.path!r} allows: its matrix is '
                f'[{inputs}, {outputs}] (leaf {site.shape} {site.dtype}); write at '
                f'most rank={min(inputs, outputs)}, or a rank_pattern for it'
            )
        if site.layout is not None and site.layout.lookup:
            return {
                'a': jnp.zeros((inputs, at_rank), dtype),
                'b': jax.random.normal(key, (at_rank, outputs), dtype),
            }
        bound = 1.0 / math.sqrt(inputs)
        return {
            'a': jax.random.uniform(key, (inputs, at_rank), dtype, -bound, bound),
            'b': jnp.zeros((at_rank, outputs), dtype),
        }

    transform = weightwise(
        init_weight,
        functools.partial(_merge, scale_of=scale_of),
        functools.partial(_apply, scale_of=scale_of, dropout=dropout),
        targets=targets,
        materialize=materialize,
    )

    def init(key: jax.Array, model: Model) -> Any:
        _check_matching(patterns, model.sites.weights)
        return transform.init(key, model)

    return transform._replace(init=init)


def _check_matching(patterns: tuple[re.Pattern[str], ...], names: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(paths.first_match({pattern.pattern: True}, name, False) for name in names):
            raise paths.TargetError(
                f'rank_pattern or alpha_pattern {pattern.pattern!r} matches no weight of this '
                f'model; near names: {paths.near_names(pattern.pattern, names)}'
            )


def _merge(leaves: Any, matrix: jax.Array, path: str, *, scale_of: Any) -> jax.Array:
    # The product of factors in bfloat16 is not rounded to it: a float32 base deserves better.
    wide = jnp.promote_types(matrix.dtype, leaves['a'].dtype)
    delta = leaves['a'].astype(wide) @ leaves['b'].astype(wide)
    return (matrix.astype(wide) + scale_of(path) * delta).astype(matrix.dtype)


def _apply(leaves: Any, use: Use, path: str, *, scale_of: Any, dropout: float) -> jax.Array:
    return use.base(use.x) + scale_of(path) * use.lowrank(
        use.dropped(dropout), leaves['a'], leaves['b']
    )
