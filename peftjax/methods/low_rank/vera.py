"""VeRA: two frozen random matrices for all weights, and two trained vectors for each."""

import functools
import math
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.shapes import HostArray
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.blocks import check_positive
from peftjax.methods.draws import stream
from peftjax.methods.low_rank.low_rank import rate


class Trained(TypedDict):
    d: Float[jax.Array, ' rank']
    b: Float[jax.Array, ' out']


class Leaves(Trained):
    frozen_a: Float[HostArray, 'in rank']
    frozen_b: Float[HostArray, 'rank out']


@described
def vera(
    *,
    rank: int,
    targets: paths.Targets,
    d_initial: float = 0.1,
    seed: int = 0,
    projections: tuple[Any, Any] | None = None,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Vector-based random matrix adaptation: `W' = W + A diag(d) B diag(b)`.

    For `W: [in, out]`. `A: [in, r]` and `B: [r, out]` are random and frozen, the same for all
    matrices (the first `in` rows, the first `out` columns); `d: [r]` and `b: [out]` train. A use
    costs `2 T r (in + out) + T (r + 2 out)` more FLOPs in the forward pass, and a training step
    computes the products twice, not three times. At the start `b = 0`, so that `W' = W`. It can be
    merged.

    Args:
      rank: `r`.
      d_initial: the initial value of `d`.
      seed: of `A` and `B`, which are in `frozen.own`.
      projections: `(A, B)` to use instead, `[at least in, r]` and `[r, at least out]`.
      dropout: dropout rate on the input of the change; active when `predict` gets an `adapter_key`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'d': [*stack, r], 'b': [*stack, out]}}`: `r + out`
      parameters for each matrix.

    Raises:
      ValueError: a rank below 1, or projections too small for a matrix, with its path.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.vera(rank=4, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['b'].shape
    (8,)

    References:
      Kopiczko et al., VeRA, 2023 (arXiv:2310.11454), section 3.2, equation 2. `A` and `B` are
      uniform with Kaiming's bound for a fan of `in` and of `r`; the authors take the largest `in`
      of the model for all, so that their matrices depend on what else is targeted.
    """
    check_positive(rank=rank)
    noise = rate(dropout)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Trained:
        del key, site
        return {'d': jnp.full(rank, d_initial, dtype), 'b': jnp.zeros(matrix.shape[1], dtype)}

    def own(site: WeightSite) -> dict[str, Any]:
        path, layout = site.path, site.layout
        assert layout is not None
        a, b = drawn(layout.inputs, layout.outputs) if given is None else given
        if a.shape[0] < layout.inputs or b.shape[1] < layout.outputs or a.shape[1] != b.shape[0]:
            raise ValueError(
                f'projections {a.shape} and {b.shape} do not reach over {path!r}, whose matrix is '
                f'[{layout.inputs}, {layout.outputs}] with rank {rank}'
            )
        one_for_all = (None,) * len(layout.stack)
        return {
            'frozen_a': a[: layout.inputs][one_for_all],
            'frozen_b': b[:, : layout.outputs][one_for_all],
            **noise,
        }

    # Drawn once for all sites of a shape.
    drawn = functools.cache(lambda *sides: drawn_projections(seed, rank, *sides))
    given = None if projections is None else tuple(map(np.asarray, projections))

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        a = leaves['frozen_a'] * leaves['d'][None]
        delta = a @ leaves['frozen_b'] * leaves['b'][None]
        return matrix + delta

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, '...']:
        x, gain = use.dropped(leaves.get('dropout')), leaves['b'][None].astype(use.dtype)
        factors = leaves['frozen_a'], leaves['frozen_b'], leaves['d']
        if use.transposed:
            return use.forward(use.x) + use.lowrank(x * gain, *factors)
        return use.forward(use.x) + use.lowrank(x, *factors) * gain

    return weightwise(
        init_weight, merge, apply, own=own, name='vera', targets=targets, materialize=materialize
    )


def drawn_projections(
    seed: int, rank: int, inputs: int, outputs: int
) -> tuple[Float32[np.ndarray, 'in {rank}'], Float32[np.ndarray, '{rank} out']]:
    """Rows from one stream, so that a longer side begins with the rows of a shorter one."""
    rows = stream(seed, 'a').uniform(-1.0, 1.0, (inputs, rank))
    columns = stream(seed, 'b').uniform(-1.0, 1.0, (outputs, rank)).T
    bounds = math.sqrt(6.0 / inputs), math.sqrt(6.0 / rank)
    return (rows * bounds[0]).astype(np.float32), (columns * bounds[1]).astype(np.float32)
