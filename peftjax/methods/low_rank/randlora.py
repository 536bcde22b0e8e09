"""RandLoRA: a change of full rank from frozen random factors and trained diagonals."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.promotion import widened
from peftjax.core.shapes import HostArray
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.blocks import check_positive
from peftjax.methods.draws import stream
from peftjax.methods.low_rank.low_rank import check_alpha, rate


class Trained(TypedDict):
    l: Float[jax.Array, 'bases rank']  # noqa: E741 (the paper's letter, and the files')
    g: Float[jax.Array, 'bases short']


class Leaves(Trained):
    frozen_a: Float[HostArray, 'rank short']
    frozen_b: Float[HostArray, 'bases long rank']
    scale: NotRequired[Float[jax.Array, '']]
    dropout: NotRequired[Float[jax.Array, '']]


@described
def randlora(
    *,
    rank: int,
    targets: paths.Targets,
    alpha: float | None = None,
    sparsity: float | None = None,
    seed: int = 0,
    bases: Mapping[str, tuple[Any, Any]] | None = None,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Full-rank random adaptation: `W' = W + alpha / r sum_i B_i diag(l_i) A diag(g_i)`.

    For a `W` whose shorter side is `d` and longer side `D`: `n = ceil(d / r)` bases `B_i: [D, r]`
    and one `A: [r, d]`, random, frozen and shared by all matrices (first rows, first columns);
    `l_i: [r]` and `g_i: [d]` train. The sum is laid along `W`, transposed where its input is the
    shorter side. With `k = n r` a use costs `2 T k (in + out) + T out` more FLOPs in the forward
    pass, and `2 k d` for the diagonals: about the cost of `W` itself, since the rank is full. A
    step spends `4 T k (in + out) + 2 T k d + 6 T out`, since `B` is frozen. At the start `l = 0`
    and `g = 1 / d`, so that `W' = W`. It can be merged.

    Args:
      rank: `r`.
      alpha: of the scale; `20 rank` by default, as the authors set it.
      sparsity: draw entries from `{-1, 0, 1} sqrt(sparsity)` and not from a uniform distribution.
        One entry in `sparsity` is not 0. Both have variance 1.
      seed: of `A` and `B_i`, which are in `frozen.own`.
      bases: `{leaf path: (A, B)}` to use instead, `[r, d]` and `[n, D, r]`.
      dropout: dropout rate on the input of the change; active when `predict` gets an `adapter_key`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'l': [*stack, n, r], 'g': [*stack, n, d]}}`:
      `n (r + d)` parameters for each matrix.

    Raises:
      ValueError: a rank or sparsity below 1, or bases of another shape, with the leaf's path.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.randlora(rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['g'].shape
    (2, 4)

    References:
      Albert et al., RandLoRA: Full-Rank Parameter-Efficient Fine-Tuning of Large Models, 2025
      (arXiv:2502.00987), equation 3 and section 5 for sparse bases (`sparsity=3`, or the square
      root of `d`). The authors' code pairs the columns of `B` with the rows of `A` in another
      order, which for random bases means the same.
    """
    check_positive(rank=rank)
    if sparsity is not None and sparsity < 1:
        raise ValueError(f'sparsity must be at least 1, got {sparsity}; write None for dense bases')
    check_alpha(alpha)
    noise = rate(dropout)
    scale = (20 * rank if alpha is None else alpha) / rank

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Trained:
        del key, site
        short = min(matrix.shape)
        count = -(-short // rank)
        return {
            'l': jnp.zeros((count, rank), dtype),
            'g': jnp.full((count, short), 1.0 / short, dtype),
        }

    def own(site: WeightSite) -> dict[str, Any]:
        path, layout = site.path, site.layout
        assert layout is not None
        short, long = sorted((layout.inputs, layout.outputs))
        shapes = (rank, short), (-(-short // rank), long, rank)
        a, b = drawn(shapes) if bases is None else bases[path]
        if (a.shape, b.shape) != shapes:
            raise ValueError(
                f'bases {a.shape} and {b.shape} of {path!r} do not fit its matrix '
                f'[{layout.inputs}, {layout.outputs}]; they must be {shapes[0]} and {shapes[1]}'
            )
        one_for_all = (None,) * len(layout.stack)
        return {
            'frozen_a': np.asarray(a)[one_for_all],
            'frozen_b': np.asarray(b)[one_for_all],
            'scale': scale,
            **noise,
        }

    # Drawn once for all sites of a shape.
    drawn = functools.cache(lambda shapes: _drawn(seed, shapes[0], shapes[1], sparsity))

    return weightwise(
        init_weight,
        _merge,
        _apply,
        own=own,
        name='randlora',
        targets=targets,
        materialize=materialize,
    )


def _merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
    a, b = _factors(leaves, matrix.shape[0] > matrix.shape[1])
    return matrix + leaves['scale'] * (a @ b)


def _apply(leaves: Leaves, use: Use) -> Float[jax.Array, '...']:
    rows, columns = use.weight().shape
    change = use.lowrank(use.dropped(leaves.get('dropout')), *_factors(leaves, rows > columns))
    return use.forward(use.x) + leaves['scale'].astype(change.dtype) * change


def _factors(
    leaves: Leaves, tall: bool
) -> tuple[Float[jax.Array, 'in change_rank'], Float[jax.Array, 'change_rank out']]:
    """`[in, k]` and `[k, out]`, whose product is the change before the scale."""
    # [n, r, d]: A with the rows and columns of each base scaled.
    leaves = widened(leaves)
    scaled = leaves['l'][:, :, None] * leaves['frozen_a'][None] * leaves['g'][:, None, :]
    short = scaled.reshape(-1, scaled.shape[-1])
    long = jnp.swapaxes(leaves['frozen_b'], 0, 1).reshape(leaves['frozen_b'].shape[1], -1)
    return (long, short) if tall else (short.T, long.T)


def _drawn(
    seed: int, a: tuple[int, ...], b: tuple[int, ...], sparsity: float | None
) -> tuple[Float32[np.ndarray, 'rank short'], Float32[np.ndarray, 'bases long rank']]:
    """Rows from one stream for each base; a longer side begins with the rows of a shorter one."""

    def draw(name: str, rows: int, columns: int) -> Float32[np.ndarray, '{rows} {columns}']:
        uniform = stream(seed, name).uniform(-1.0, 1.0, (rows, columns))
        if sparsity is None:
            return (math.sqrt(3.0) * uniform).astype(np.float32)
        kept = np.abs(uniform) > 1.0 - 1.0 / sparsity
        return (math.sqrt(sparsity) * np.sign(uniform) * kept).astype(np.float32)

    return draw('a', a[1], a[0]).T, np.stack([draw(f'b{i}', *b[1:]) for i in range(b[0])])
