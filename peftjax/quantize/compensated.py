"""Rounding column by column, where the columns that follow make up for what was lost."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, UInt8

from peftjax.quantize.nf4 import NF4, joined, nearest, value


def pack_compensated(
    matrix: Float[jax.Array, 'rows columns'],
    squares: Float32[jax.Array, 'columns columns'],
    scheme: NF4,
    damping: float,
) -> dict[str, jax.Array]:
    r"""The arrays of `scheme.pack(matrix)` with codes that lose less of `matrix @ x`.

    With :math:`H = X^T X + \lambda I` and :math:`H^{-1} = U^T U`, :math:`U` upper triangular,
    column :math:`j` becomes the nearest :math:`\hat w_j` and the columns :math:`k > j` become
    :math:`w_k - U_{jk} (w_j - \hat w_j) / U_{jj}`. Scales stay those of the matrix before.

    The columns of the largest inputs come first, while there are others to make up for them.

    Args:
      matrix: `[rows, columns]`, outputs and inputs.
      squares: `[columns, columns]` float32, :math:`X^T X` of its inputs.
      damping: :math:`\lambda` over the mean of the diagonal of :math:`X^T X`, above 0.

    >>> x, matrix = jax.random.normal(jax.random.key(0), (2, 8, 8))
    >>> sorted(pack_compensated(matrix, x.T @ x, NF4(block=4, double=False), 0.01))
    ['codes', 'scale']

    Source: Frantar et al., GPTQ, 2022 (arXiv:2210.17323), section 3.3 and algorithm 1.
    """
    arrays = scheme.pack(matrix)
    steps = scheme.steps(arrays)
    rows, width = steps.shape
    columns, block = matrix.shape[1], scheme.block
    # A row's last block may be longer than the row: columns of zeros, which nothing depends on.
    padding = jnp.arange(columns, width)
    order = jnp.concatenate([jnp.argsort(-jnp.diagonal(squares)), padding])
    real = order[:columns]
    upper = jnp.pad(_upper(squares[real][:, real], damping), (0, width - columns))
    upper = upper.at[padding, padding].set(1.0)
    weights = jnp.pad(matrix.astype(jnp.float32), ((0, 0), (0, width - columns)))[:, order]
    steps = jnp.where(steps == 0.0, 1.0, steps)[:, order]

    def column(j: Int[jax.Array, ''], carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        part, triangle, step, codes, errors = carry
        code = nearest(part[:, j] / step[:, j])
        error = (part[:, j] - value(code) * step[:, j]) / triangle[j, j]
        later = jnp.where(jnp.arange(block) > j, triangle[j], 0.0)
        part = part - error[:, None] * later[None]
        return part, triangle, step, codes.at[:, j].set(code), errors.at[:, j].set(error)

    def columns_of_a_block(
        weights: Float32[jax.Array, 'rows columns'], first: Int[jax.Array, '']
    ) -> tuple[Float32[jax.Array, 'rows columns'], UInt8[jax.Array, 'rows block']]:
        part, step = (
            jax.lax.dynamic_slice_in_dim(each, first, block, 1) for each in (weights, steps)
        )
        across = jax.lax.dynamic_slice_in_dim(upper, first, block, 0)
        triangle = jax.lax.dynamic_slice_in_dim(across, first, block, 1)
        start = (part, triangle, step, jnp.zeros((rows, block), jnp.uint8), jnp.zeros_like(part))
        *_, codes, errors = jax.lax.fori_loop(0, block, column, start)
        # Changes this block's columns too, which are not read again.
        return weights - jnp.matmul(errors, across, precision='highest'), codes

    _, codes = jax.lax.scan(columns_of_a_block, weights, jnp.arange(0, width, block))
    codes = jnp.swapaxes(codes, 0, 1).reshape(rows, width)
    return {**arrays, 'codes': joined(codes[:, jnp.argsort(order)])}


def _upper(
    squares: Float32[jax.Array, 'columns columns'], damping: float
) -> Float32[jax.Array, 'columns columns']:
    """Upper triangular `U` with `U^T U` the inverse of the damped squares."""
    mean = jnp.mean(jnp.diagonal(squares))
    identity = jnp.eye(squares.shape[0])
    damped = squares + jnp.where(mean > 0.0, damping * mean, 1.0) * identity
    with jax.default_matmul_precision('highest'):
        # From the last column on: damped = R R^T with R upper triangular, and U is its inverse.
        root = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
        return jax.scipy.linalg.solve_triangular(root, identity)
