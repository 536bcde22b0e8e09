"""Rules that use the angles between deltas: SLERP, the Karcher mean, Model Stock."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from peftjax.merging.changes import Delta
from peftjax.merging.span import Per, Weights, shares_at, spanned

_PARALLEL = 0.9995
"""Above this cosine two directions count as one, and interpolation is linear."""


def slerp(first: Delta, second: Delta, t: Any, *, per: Per = 'tensor') -> Delta:
    r"""Spherical interpolation: `sin((1 - t) a) / sin a D_1 + sin(t a) / sin a D_2`.

    `a` is the angle between the deltas of a matrix, or of the whole model. Where they are parallel
    or opposite to within 2 degrees, or one is zero, the interpolation is linear. Factored changes
    stay factored.

    Args:
      first, second: what `t = 0` and `t = 1` give.
      t: a number, which may be traced.
      per: `'tensor'` for an angle for each matrix, `'model'` for a single angle.

    Raises:
      ValueError: deltas that do not fit each other, or an unknown `per`.

    >>> base = {'w': jnp.zeros(2)}
    >>> both = [peftjax.merging.delta_of({'w': jnp.asarray(w)}, base)
    ...         for w in ([1.0, 0.0], [0.0, 1.0])]
    >>> peftjax.merging.slerp(*both, 0.5)['w'].values.round(4)
    Array([[0.7071, 0.7071]], dtype=float32)

    References:
      Shoemake, Animating Rotation with Quaternion Curves, 1985.
    """
    share = jnp.asarray(t, jnp.float32)

    def coefficients(inner: Float32[jax.Array, '*stack T T']) -> Float32[jax.Array, '*stack T']:
        cosine = directions(inner)[..., 0, 1]
        zero = (inner[..., 0, 0] == 0) | (inner[..., 1, 1] == 0)
        linear = zero | (jnp.abs(cosine) > _PARALLEL)
        angle = jnp.arccos(jnp.where(linear, 0.0, cosine))
        start = jnp.where(linear, 1 - share, jnp.sin((1 - share) * angle) / jnp.sin(angle))
        end = jnp.where(linear, share, jnp.sin(share * angle) / jnp.sin(angle))
        return jnp.stack([start, end], -1)

    return spanned([first, second], per, coefficients)


def _norms(inner: Float32[jax.Array, '*stack T T']) -> Float32[jax.Array, '*stack T']:
    squares = jnp.diagonal(inner, axis1=-2, axis2=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def directions(inner: Float32[jax.Array, '*stack T T']) -> Float32[jax.Array, '*stack T T']:
    """Cosines of the angles; zero beside a zero delta."""
    inverse = _inverse(_norms(inner))
    return jnp.clip(inner * inverse[..., None, :] * inverse[..., None], -1.0, 1.0)


def _inverse(values: jax.Array) -> jax.Array:
    return jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1.0), 0.0)


def karcher_mean(
    deltas: Sequence[Delta],
    weights: Weights | None = None,
    *,
    steps: int = 20,
    per: Per = 'tensor',
) -> Delta:
    r"""The mean direction on the sphere, with the mean length.

    The direction `p` minimises `sum_i w_i angle(p, D_i)^2`, found by `steps` of `p <- exp_p(sum_i
    w_i log_p D_i)` from the mean of the directions; the length is `sum_i w_i |D_i|`. All of it is
    computed from the inner products of the deltas, so factored changes stay factored. Deltas whose
    directions cancel have no mean direction, and give zero.

    Args:
      deltas: the deltas to average.
      weights: one for each delta; all equal by default. They are divided by their sum.
      steps: the number of steps of the iteration.
      per: `'tensor'` for a sphere for each matrix, `'model'` for a single sphere.

    Raises:
      ValueError: weights by path, or deltas or weights that do not fit each other.

    >>> base = {'w': jnp.zeros(2)}
    >>> both = [peftjax.merging.delta_of({'w': jnp.asarray(w)}, base)
    ...         for w in ([3.0, 0.0], [0.0, 1.0])]
    >>> peftjax.merging.karcher_mean(both)['w'].values.round(4)
    Array([[1.4142, 1.4142]], dtype=float32)

    References:
      Karcher, Riemannian Center of Mass and Mollifier Smoothing, 1977; mergekit's code,
      which stops at a tolerance.
    """
    if isinstance(weights, Mapping):
        raise ValueError('weights is a dict of paths; write one number for each delta')
    shares = shares_at(weights, '', len(deltas))

    def coefficients(inner: Float32[jax.Array, '*stack T T']) -> Float32[jax.Array, '*stack T']:
        norms, cosines = _norms(inner), directions(inner)
        alive = jnp.where(norms > 0, jnp.broadcast_to(shares, norms.shape), 0.0)
        alive = alive * _inverse(alive.sum(-1))[..., None]

        def step(_: Any, point: jax.Array) -> jax.Array:
            return _towards(point, cosines, alive)

        point = jax.lax.fori_loop(0, steps, step, _unit(alive, cosines))
        length = (jnp.broadcast_to(shares, norms.shape) * norms).sum(-1)
        return point * length[..., None] * _inverse(norms)

    return spanned(deltas, per, coefficients)


def _length(point: jax.Array, cosines: jax.Array) -> jax.Array:
    """The length of a sum of directions with these coefficients."""
    square = (point * _times(cosines, point)).sum(-1)
    return jnp.where(square > 1e-12, jnp.sqrt(jnp.where(square > 1e-12, square, 1.0)), 0.0)


def _times(cosines: jax.Array, point: jax.Array) -> jax.Array:
    return (cosines * point[..., None, :]).sum(-1)


def _unit(point: jax.Array, cosines: jax.Array) -> jax.Array:
    return point * _inverse(_length(point, cosines))[..., None]


def _towards(point: jax.Array, cosines: jax.Array, weights: jax.Array) -> jax.Array:
    """One step of the iteration, in coefficients of the directions."""
    dots = jnp.clip(_times(cosines, point), -1.0, 1.0)
    near = jnp.abs(dots) > 1 - 1e-6
    angle = jnp.arccos(jnp.where(near, 0.0, dots))
    stretched = weights * jnp.where(near, 1.0, angle / jnp.sin(angle))
    tangent = stretched - (stretched * dots).sum(-1)[..., None] * point
    length = _length(tangent, cosines)[..., None]
    moved = jnp.cos(length) * point + jnp.sin(length) * _inverse(length) * tangent
    return _unit(moved, cosines)


def multi_slerp(
    deltas: Sequence[Delta], weights: Weights | None = None, *, per: Per = 'tensor'
) -> Delta:
    r"""SLERP of several deltas: one step from the mean of the directions, as `karcher_mean` takes.

    For two deltas the result is on the arc that `slerp` follows. mergekit's `multislerp` projects
    to the tangent space without the factor `a / sin a` of the logarithm; its tangents then cancel,
    and its result is the mean of the directions, with the mean length.

    Args:
      deltas, weights, per: as for `karcher_mean`.

    >>> base = {'w': jnp.zeros(2)}
    >>> both = [peftjax.merging.delta_of({'w': jnp.asarray(w)}, base)
    ...         for w in ([1.0, 0.0], [0.0, 1.0])]
    >>> peftjax.merging.multi_slerp(both)['w'].values.round(4)
    Array([[0.7071, 0.7071]], dtype=float32)
    """
    return karcher_mean(deltas, weights, steps=1, per=per)


def model_stock(deltas: Sequence[Delta], *, per: Per = 'tensor') -> Delta:
    r"""Model Stock: the mean, drawn back to the base by how far the deltas disagree.

    `t = N c / (1 + (N - 1) c)` times the mean of the `N` deltas, with `c` the mean cosine of their
    pairs; a mean below zero counts as zero. Factored changes stay factored.

    Args:
      deltas: of one task, by different seeds or hyperparameters.
      per: `'tensor'` for a ratio for each matrix, `'model'` for a single ratio.

    Raises:
      ValueError: deltas that do not fit each other, or an unknown `per`.

    >>> base = {'w': jnp.zeros(2)}
    >>> both = [peftjax.merging.delta_of({'w': jnp.asarray(w)}, base)
    ...         for w in ([1.0, 0.0], [0.6, 0.8])]
    >>> peftjax.merging.model_stock(both)['w'].values  # c = 0.6 and t = 1.2 / 1.6
    Array([[0.6, 0.3]], dtype=float32)

    References:
      Jang et al., Model Stock, 2024 (arXiv:2403.19522).
    """
    count = len(deltas)

    def coefficients(inner: Float32[jax.Array, '*stack T T']) -> Float32[jax.Array, '*stack T']:
        cosines = directions(inner)
        pairs = cosines.sum((-1, -2)) - jnp.diagonal(cosines, axis1=-2, axis2=-1).sum(-1)
        cosine = jnp.maximum(pairs / max(1, count * (count - 1)), 0.0)
        ratio = count * cosine / (1 + (count - 1) * cosine) if count > 1 else jnp.ones_like(cosine)
        return jnp.broadcast_to(ratio[..., None] / count, (*ratio.shape, count))

    return spanned(deltas, per, coefficients)
