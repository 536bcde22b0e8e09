"""SHiRA: a few trained entries of each matrix, at places drawn once."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.shapes import HostArray
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import on_plain_dots, weightwise
from peftjax.methods.blocks import check_positive
from peftjax.methods.draws import distinct


class Trained(TypedDict):
    values: Float[jax.Array, ' entries']


class Leaves(Trained):
    positions: Integer[HostArray, ' entries']
    scale: NotRequired[Float[jax.Array, '']]


@described
def shira(
    *,
    rank: int,
    targets: paths.Targets,
    scaling: float = 1.0,
    seed: int = 0,
    positions: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Sparse high-rank adaptation: `W' = W + s S`, `S` zero except at `k = r (in + out)` places.

    For `W: [in, out]`. A use adds `s v_j x[:, row_j]` to output `column_j` for each place: `2 T k`
    more FLOPs in the forward pass (`7 T k` in a step) and `T out` to join them, by a gather and a
    scatter of `T k` numbers, and no dense change. At the start `v = 0`, so that `W' = W`. It can be
    merged.

    Args:
      rank: `r`, so that a matrix trains as many values as LoRA of this rank.
      scaling: `s`.
      seed: of the places, which are in `frozen.own`. Every matrix has
        places of its own.
      positions: `{leaf path: [*stack, k]}` places to use instead, `row * out + column`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'values': [*stack, k]}}`.

    Raises:
      ValueError: a rank below 1 or, from `init`, more places than the matrix has entries.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.shira(rank=1, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['values'].shape
    (12,)

    References:
      Bhardwaj et al., Sparse High Rank Adapters, 2024 (arXiv:2406.13175), section 3, the mask
      SHiRA-Rand. Its other masks (weight magnitude, gradient, SNIP) are `positions` of one's own.
    """
    check_positive(rank=rank)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Trained:
        del key
        count = rank * sum(matrix.shape)
        if count > matrix.size:
            raise ValueError(
                f'rank {rank} trains {count} values, more than the {matrix.size} entries of '
                f'{site.path!r} {site.shape} {site.dtype}; write at most '
                f'rank={matrix.size // sum(matrix.shape)}'
            )
        return {'values': jnp.zeros(count, dtype)}

    def own(site: WeightSite) -> dict[str, Any]:
        path, layout = site.path, site.layout
        assert layout is not None
        inputs, outputs = layout.inputs, layout.outputs
        if positions is not None:
            return {'positions': jnp.asarray(positions[path]), 'scale': scaling}
        count = rank * (inputs + outputs)
        places = distinct(seed, path, count, inputs * outputs, layout.stack_shape)
        return {'positions': places, 'scale': scaling}

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        rows, columns = jnp.divmod(leaves['positions'], matrix.shape[1])
        return matrix.at[rows, columns].add(leaves['scale'] * leaves['values'])

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, 'T out']:
        y = use.forward(use.x)
        rows, columns = jnp.divmod(leaves['positions'], y.shape[1])
        scale, values = (leaves[name].astype(use.dtype) for name in ('scale', 'values'))
        # Features in front: a place moves a contiguous row of T numbers.
        added = jnp.zeros(y.shape[::-1], y.dtype)
        added = added.at[columns].add((use.x.T[rows] * (scale * values)[:, None]).astype(y.dtype))
        return y + added.T

    return weightwise(
        init_weight,
        merge,
        on_plain_dots(apply, merge),
        own=own,
        name='shira',
        targets=targets,
        materialize=materialize,
    )
