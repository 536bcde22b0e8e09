"""Shared by LoRA and its relatives: ranks and scales by pattern, and initial factors."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.core.numbers import is_plain
from peftjax.core.shapes import HostArray
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform
from peftjax.core.use import Use
from peftjax.methods.low_rank import lora_init


class LowRankLeaves(TypedDict):
    a: Inexact[HostArray, 'in rank']
    b: Inexact[jax.Array, 'rank out']
    scale: NotRequired[Inexact[jax.Array, '']]  # In the wider dtype, like the factors.
    dropout: NotRequired[Inexact[jax.Array, '']]


def rate(dropout: float) -> dict[str, float]:
    """`{'dropout': rate}`, or nothing at a rate of zero: then no mask is drawn.

    Raises:
      ValueError: a rate outside [0, 1).
    """
    if is_plain(dropout):
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f'dropout is a rate in [0, 1), got {dropout}')
        if not dropout:
            return {}
    return {'dropout': dropout}


def check_alpha(alpha: float | None) -> None:
    """Raises `ValueError` unless `alpha` is above 0: it multiplies the change."""
    if is_plain(alpha) and not alpha > 0:
        raise ValueError(f'alpha must be above 0, got {alpha}: it multiplies the change')


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The settings of a term `s A B`, with `A: [in, r]` and `B: [r, out]`; see `peftjax.lora`."""

    rank: int
    alpha: float | None = None
    rslora: bool = False
    dropout: float = 0.0
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    dtype: Any = jnp.float32
    init: str = 'kaiming'

    def __post_init__(self) -> None:
        for each in (self.rank, *(self.rank_pattern or {}).values()):
            if not isinstance(each, (int, np.integer)) or each < 1:
                raise ValueError(f'rank must be a whole number of at least 1, got {each!r}')
        for alpha in (self.alpha, *(self.alpha_pattern or {}).values()):
            check_alpha(alpha)
        rate(self.dropout)
        if self.init not in lora_init.FROM_NOTHING | lora_init.FROM_WEIGHT:
            known = sorted(lora_init.FROM_NOTHING | lora_init.FROM_WEIGHT)
            raise ValueError(f'init is {self.init!r}; write one of {known}')
        if self._exceptions():
            paths.entries_of(self._exceptions())

    def _exceptions(self) -> tuple[str, ...]:
        return (*(self.rank_pattern or {}), *(self.alpha_pattern or {}))

    def rank_at(self, path: str) -> int:
        return paths.first_match(self.rank_pattern, path, self.rank)

    def scale_at(self, path: str) -> float:
        """`alpha / r`, or `alpha / sqrt(r)`."""
        rank = self.rank_at(path)
        default = rank if self.alpha is None else self.alpha
        alpha = paths.first_match(self.alpha_pattern, path, default)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def own(self, site: WeightSite) -> dict[str, float]:
        """The numbers that do not train: the scale, and the rate of dropout if there is one."""
        return {'scale': self.scale_at(site.path), **rate(self.dropout)}

    def check_rank(self, matrix: Inexact[jax.Array, 'in out'], site: WeightSite) -> None:
        """Raises `ValueError` if a decomposition of the matrix has fewer terms than the rank."""
        inputs, outputs = matrix.shape
        rank = self.rank_at(site.path)
        if rank > min(inputs, outputs):
            raise ValueError(
                f'rank {rank} is larger than {site.path!r} allows: a decomposition of its matrix, '
                f'[{inputs}, {outputs}] (leaf {site.shape} {site.dtype}), has fewer terms; write '
                f'at most rank={min(inputs, outputs)}, or a rank_pattern for it'
            )

    def factors(
        self, key: PRNGKeyArray, matrix: Inexact[jax.Array, 'in out'], site: WeightSite
    ) -> LowRankLeaves:
        """`A` and `B` as `init` says; where it says `A B = 0`, a lookup has `A = 0`, `B ~ N(0, 1)`.

        Raises:
          ValueError: factors that come from the matrix, and a rank above its smaller side.
        """
        if self.init in lora_init.FROM_WEIGHT:
            self.check_rank(matrix, site)
        rank = self.rank_at(site.path)
        looked_up = site.layout is not None and site.layout.lookup
        if looked_up and self.init in lora_init.FROM_NOTHING:
            return {
                'a': jnp.zeros((matrix.shape[0], rank), self.dtype),
                'b': jax.random.normal(key, (rank, matrix.shape[1]), self.dtype),
            }
        draw = (lora_init.FROM_NOTHING | lora_init.FROM_WEIGHT)[self.init]
        a, b = draw(key, matrix, rank, self.scale_at(site.path))
        return {'a': a.astype(self.dtype), 'b': b.astype(self.dtype)}

    def added(self, leaves: LowRankLeaves, use: Use) -> Inexact[jax.Array, '...']:
        """The term that `s A B` adds to the use, without forming `A B`."""
        branch = use.lowrank(use.dropped(leaves.get('dropout')), leaves['a'], leaves['b'])
        return leaves['scale'].astype(branch.dtype) * branch

    def sum(
        self,
        leaves: LowRankLeaves,
        matrix: Inexact[jax.Array, 'in out'],
        sign: float = 1.0,
    ) -> Inexact[jax.Array, 'in out']:
        """`W + s A B`, or minus with `sign=-1`."""
        return matrix + sign * leaves['scale'] * (leaves['a'] @ leaves['b'])

    def checked(self, transform: PeftTransform) -> PeftTransform:
        """`transform` with an init that raises if a pattern for rank or alpha matches no target."""

        def start(key: PRNGKeyArray, model: Model) -> Any:
            adapter = transform.start(key, model)
            self._check_matching(adapter)
            return adapter

        return transform.replace(start=start)

    def _check_matching(self, names: Iterable[str]) -> None:
        for pattern in self._exceptions():
            if not any(paths.first_match({pattern: True}, name, False) for name in names):
                raise paths.TargetError(
                    f'rank_pattern or alpha_pattern {pattern!r} matches none of the '
                    f'targets{paths.nearby(pattern, names)}'
                )
