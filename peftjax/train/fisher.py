"""The Fisher information of single weights, from which FISH Mask chooses the ones that train."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.quantized import is_quantized


def fisher(
    log_likelihood: Callable[[Any, Any], jax.Array], params: Any, batches: Iterable[Any]
) -> Any:
    r"""The diagonal of the empirical Fisher information.

    `F = 1 / N sum_i (d log p(y_i | x_i) / d w)^2` over the examples of all batches. Gradients are
    taken one after another, so memory holds two trees of the model's size.

    Args:
      log_likelihood: `(params, example) -> scalar`, `log p(y | x)` of one example; not a sum over a
        batch, since the gradient of each example is squared.
      params: parameters of the base, or the part of them that may be chosen.
      batches: pytrees of arrays whose first axis is the examples.

    Returns:
      A tree like `params` of float32 arrays, at least 0.

    Raises:
      ValueError: there are no examples; or params are quantised, and their codes have no gradient.

    >>> batch = {'x': jnp.asarray([1.0, 2.0])}
    >>> peftjax.train.fisher(lambda params, e: params['w'] * e['x'], {'w': 3.0}, [batch])
    {'w': Array(2.5, dtype=float32)}

    References:
      Sung et al., Training Neural Networks with Fixed Sparse Masks, 2021 (arXiv:2111.09839),
      equation 5, with the labels of the data.
    """

    @jax.jit
    def add(total: Any, params: Any, batch: Any) -> Any:
        def one(total: Any, example: Any) -> tuple[Any, None]:
            slopes = jax.grad(log_likelihood)(params, example)
            squares = jax.tree.map(lambda g: jnp.abs(g).astype(jnp.float32) ** 2, slopes)
            return jax.tree.map(jnp.add, total, squares), None

        return jax.lax.scan(one, total, batch)[0]

    packed = [path for path, leaf in paths.flatten(params).items() if is_quantized(leaf)]
    if packed:
        raise ValueError(
            f'{packed[0]!r} is quantised, and codes have no gradient; write '
            'peftjax.dequantize(params)'
        )
    params = jax.tree.map(jnp.asarray, params)
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    count = 0
    for batch in batches:
        count += len(jax.tree.leaves(batch)[0])
        total = add(total, params, batch)
    if not count:
        raise ValueError('batches holds no examples')
    return jax.tree.map(lambda leaf: leaf / count, total)
