"""What sparse merging keeps of a delta: the largest entries, the middle ones, or some at random."""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.numbers import is_plain
from peftjax.merging.changes import Delta, Full
from peftjax.merging.span import Per, check_per

Arrays = Mapping[str, jax.Array]
_LIMB_BITS = 20
_LIMB = 1 << _LIMB_BITS


def matrices(delta: Delta) -> dict[str, jax.Array]:
    """The changes as arrays `[*stack, in, out]`."""
    return {path: change.matrix() for path, change in delta.items()}


def as_delta(arrays: Arrays, like: Delta) -> dict[str, Full]:
    """Arrays `[*stack, in, out]` as full changes of the same leaves."""
    return {path: Full(array, like[path].layout) for path, array in arrays.items()}


def trimmed(delta: Delta, density: float, per: Per = 'model') -> Delta:
    r"""Keeps the `k = round(density n)` entries of the largest magnitude, and zeros the others.

    Args:
      delta: a change of `n` entries.
      density: the share that stays, above 0 and at most 1.
      per: `'model'` for one threshold over all entries, as in TIES; `'tensor'` for a threshold for
        each matrix of a stack and for each vector.

    Returns:
      A delta of full changes. Entries that equal the threshold all stay.

    Raises:
      ValueError: a density outside (0, 1], or an unknown `per`.

    >>> delta = peftjax.merging.delta_of({'w': jnp.asarray([3.0, -1.0, 2.0, 0.5])},
    ...                                  {'w': jnp.zeros(4)})
    >>> peftjax.merging.trimmed(delta, 0.5)['w'].values
    Array([[3., 0., 2., 0.]], dtype=float32)
    """
    check_density(density)
    return as_delta(keep_largest(matrices(delta), density, per), delta)


def keep_largest(arrays: Arrays, density: float, per: Per) -> dict[str, jax.Array]:
    """See `trimmed`."""
    check_per(per)
    if per == 'tensor':
        return {
            path: _each(array, lambda one: _keep(one, density)) for path, array in arrays.items()
        }
    sizes = [array.size for array in arrays.values()]
    bits = {path: _bits(array) for path, array in arrays.items()}
    least = _kth_largest(list(bits.values()), kept(density, sum(sizes)))
    return {path: jnp.where(bits[path] >= least, array, 0.0) for path, array in arrays.items()}


def kept(density: float, size: int) -> int:
    """How many of `size` entries a density keeps, at least one."""
    return max(1, round(density * size))


def _keep(matrix: Float32[jax.Array, 'in out'], density: float) -> Float32[jax.Array, 'in out']:
    bits = _bits(matrix)
    return jnp.where(bits >= _kth_largest([bits], kept(density, matrix.size)), matrix, 0.0)


def without_extremes(
    matrix: Float32[jax.Array, 'in out'], density: float, gamma: float
) -> Float32[jax.Array, 'in out']:
    """The `round(density n)` largest entries of a matrix after the `round(gamma n)` largest.

    Entries that equal a kept entry are kept too: a matrix of one magnitude stays whole.
    """
    bits, size = _bits(matrix), matrix.size
    count = kept(density, size)
    gone = min(round(gamma * size), size - count)
    most, least = _kth_largest([bits], gone + 1), _kth_largest([bits], gone + count)
    return jnp.where((bits <= most) & (bits >= least), matrix, 0.0)


def _bits(array: Float32[jax.Array, '...']) -> Int32[jax.Array, '...']:
    """Magnitudes as whole numbers of the same order: the bits of a float that is not negative."""
    return jax.lax.bitcast_convert_type(jnp.abs(array), jnp.int32)


def _kth_largest(bits: Sequence[Int32[jax.Array, '...']], k: int) -> Int32[jax.Array, '']:
    """The k-th largest of all numbers, by bisection: nothing is sorted or concatenated."""

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low + 1) // 2
        enough = _at_least(k, [each >= middle for each in bits])
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    bounds = jnp.int32(0), jnp.int32(0x7F800000)
    return jax.lax.fori_loop(0, 31, halve, bounds)[0]


def _at_least(k: int, masks: Sequence[Bool[jax.Array, '...']]) -> Bool[jax.Array, '']:
    """Whether at least `k` entries of all masks are true; a model may have more than an int32."""
    high = low = jnp.int32(0)
    for mask in masks:
        count = jnp.count_nonzero(mask).astype(jnp.int32)
        low += count & _LIMB - 1
        high += (count >> _LIMB_BITS) + (low >> _LIMB_BITS)
        low &= _LIMB - 1
    most, least = divmod(k, _LIMB)
    return (high > most) | ((high == most) & (low >= least))


def _each(
    array: Float32[jax.Array, '*stack in out'], function: Callable[[jax.Array], jax.Array]
) -> Float32[jax.Array, '*stack in out']:
    """`function` of every matrix of a stack."""
    for _ in range(array.ndim - 2):
        function = jax.vmap(function)
    return function(array)


def middle(arrays: Arrays, density: float, gamma: float) -> dict[str, jax.Array]:
    """Every matrix and vector without its largest and its smallest entries."""
    return {
        path: _each(array, lambda one: without_extremes(one, density, gamma))
        for path, array in arrays.items()
    }


def dropped(key: PRNGKeyArray, delta: Delta, density: float) -> Delta:
    r"""DARE's thinning of one delta: an entry stays with probability `p`, and is divided by it.

    The expectation is the delta itself. Each delta draws with its own key, so that the result does
    not depend on the other deltas that it is merged with.

    Args:
      key: one for each delta.
      delta: what to thin out.
      density: `p`, the probability to stay, above 0 and at most 1.

    Raises:
      ValueError: a density outside (0, 1].

    >>> delta = peftjax.merging.delta_of({'w': jnp.ones(4)}, {'w': jnp.zeros(4)})
    >>> peftjax.merging.dropped(jax.random.key(1), delta, 0.5)['w'].values
    Array([[0., 0., 0., 2.]], dtype=float32)

    References:
      Yu et al., Language Models are Super Mario, 2023 (arXiv:2311.03099).
    """
    check_density(density)
    return as_delta(drop(key, matrices(delta), density), delta)


def drop(key: PRNGKeyArray, arrays: Arrays, density: float) -> dict[str, jax.Array]:
    """See `dropped`."""
    return {
        path: _stay(paths.fold_in(key, path), array, jnp.full(array.shape, density, array.dtype))
        for path, array in arrays.items()
    }


def drop_by_rank(
    key: PRNGKeyArray, arrays: Arrays, density: float, epsilon: float
) -> dict[str, jax.Array]:
    """MagPrune: the larger an entry is among those of its output, the likelier it stays."""

    def one(path: str, array: jax.Array) -> jax.Array:
        axis = -2 if array.shape[-2] > 1 else -1  # A vector is ranked as a whole.
        order = jnp.argsort(jnp.argsort(jnp.abs(array), axis), axis).astype(array.dtype)
        most = array.shape[axis] - 1
        share = order / most if most else jnp.full_like(order, 0.5)  # A single entry has the mean.
        probability = density - epsilon + 2 * epsilon * share
        return _stay(paths.fold_in(key, path), array, probability)

    return {path: one(path, array) for path, array in arrays.items()}


def _stay(key: PRNGKeyArray, array: jax.Array, probability: jax.Array) -> jax.Array:
    """Keeps each entry with its probability, and divides the entry by it."""
    return jnp.where(jax.random.bernoulli(key, probability), array / probability, 0.0)


def check_density(density: float) -> None:
    """Raises `ValueError` unless a density is a plain number in (0, 1]."""
    if not is_plain(density) or not 0.0 < density <= 1.0 or math.isnan(density):
        raise ValueError(f'density is {density!r}; write the share that stays, in (0, 1]')


def check_spread(density: float, epsilon: float) -> None:
    """Raises `ValueError` unless `density +- epsilon` are probabilities above 0."""
    check_density(density)
    if not is_plain(epsilon) or epsilon < 0 or density - epsilon <= 0 or density + epsilon > 1:
        raise ValueError(
            f'density {density} +- epsilon {epsilon} leaves (0, 1]; write at most '
            f'epsilon={min(density, 1 - density):.4g}'
        )
