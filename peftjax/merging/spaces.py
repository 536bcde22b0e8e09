"""Core Space: merging adapters in the small space that their factors span."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from peftjax.core.layout import Layout
from peftjax.merging.changes import Change, Delta, Factored, Full, aligned, product

Rule = Callable[[Sequence[Delta]], Delta]
"""A merging rule, which makes one delta of several."""


class Cores(NamedTuple):
    """Deltas in the common bases of their factors.

    Attributes:
      cores: for each delta, `{leaf path: Full}` of cores `M_i: [*stack, k, l]` where the changes
        are factored, and the changes themselves elsewhere.
      bases: `{leaf path: (U, V)}`, orthonormal: `U: [*stack, in, k]`, `V: [*stack, l, out]`. A
        change is `U M_i V`.
      layouts: of the leaves.
    """

    cores: list[dict[str, Change]]
    bases: Mapping[str, tuple[jax.Array, jax.Array]]
    layouts: Mapping[str, Layout]


def core_space(rule: Rule) -> Rule:
    r"""A rule that merges in Core Space: no array of the size of a weight is formed.

    For factored changes `L_i R_i`, `U` holds the left singular vectors of `[L_1, ..., L_T]` and `V`
    the right ones of `[R_1; ...; R_T]`. Each change is `U M_i V` with the core `M_i = U' L_i R_i
    V'` of `[T r, T r]`, exactly. `rule` merges the cores, and the result is factored: `(U M) V`.
    A linear rule gives the same result as on full changes. TIES and other rules that act on each
    number give a different one. `rule` merges full changes (heads, biases) as they are, in the same
    call.

    The bases are computed again in each call. For a grid of settings it is cheaper to call `cores`
    once, and `from_cores(rule(found.cores), found)` for each setting.

    Args:
      rule: a rule of deltas, such as `lambda cores: peftjax.merging.ties(cores, density=0.1)`.

    Returns:
      A rule of deltas.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> deltas = [peftjax.merging.delta(mlp, tx, *tx.init(jax.random.key(i), mlp)) for i in (0, 1)]
    >>> peftjax.merging.core_space(peftjax.merging.ties)(deltas)
    {'hidden/kernel': Factored((4, 8), rank 4)}

    References:
      Panariello et al., Accurate and Efficient Low-Rank Model Merging in Core Space, 2025
      (arXiv:2509.17786). The authors' code takes the factors as they are trained; here the left
      factors include the scale `alpha / r`, so that adapters of a larger scale weigh more in `U`.
    """

    def merged(deltas: Sequence[Delta]) -> Delta:
        found = cores(deltas)
        return from_cores(rule(found.cores), found)

    return merged


def cores(deltas: Sequence[Delta]) -> Cores:
    """The deltas in the common bases of their factors; see `core_space`.

    Raises:
      TypeError, ValueError: as for every rule, for other things than deltas, and for changes that
        do not fit each other.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> deltas = [peftjax.merging.delta(mlp, tx, *tx.init(jax.random.key(i), mlp)) for i in (0, 1)]
    >>> peftjax.merging.cores(deltas).cores[0]['hidden/kernel'].values.shape
    (4, 4)
    """
    found = aligned(deltas)
    small: list[dict[str, Change]] = [{} for _ in deltas]
    bases = {}
    for path, changes in found.items():
        factored = [change for change in changes if isinstance(change, Factored)]
        if len(factored) < len(changes):
            for each, change in zip(small, changes, strict=True):
                each[path] = change
            continue
        bases[path] = left, right = _bases(factored)
        for each, change in zip(small, factored, strict=True):
            core = product(
                product(jnp.swapaxes(left, -1, -2), change.left),
                product(change.right, jnp.swapaxes(right, -1, -2)),
            )
            each[path] = Full(core, _core_layout(core.shape))
    return Cores(small, bases, {path: changes[0].layout for path, changes in found.items()})


def _bases(changes: Sequence[Factored]) -> tuple[jax.Array, jax.Array]:
    left = jnp.concatenate([change.left for change in changes], -1)
    right = jnp.concatenate([change.right for change in changes], -2)
    return _left_vectors(left), jnp.swapaxes(_left_vectors(jnp.swapaxes(right, -1, -2)), -1, -2)


def _left_vectors(matrix: Float32[jax.Array, '*stack n k']) -> Float32[jax.Array, '*stack n least']:
    """Left singular vectors, for any order of the columns; QR comes first for tall matrices."""
    if matrix.shape[-1] == 0:
        return matrix
    orthonormal, triangle = jnp.linalg.qr(matrix)
    return product(orthonormal, jnp.linalg.svd(triangle, full_matrices=False)[0])


def _core_layout(shape: tuple[int, ...]) -> Layout:
    *stack, rows, columns = range(len(shape))
    return Layout(shape, tuple(stack), (rows,), (columns,))


def from_cores(merged: Delta, found: Cores) -> Delta:
    """The changes of the leaves that merged cores stand for, factored where there are bases.

    Raises:
      ValueError: `merged` has other leaves than the cores.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> deltas = [peftjax.merging.delta(mlp, tx, *tx.init(jax.random.key(i), mlp)) for i in (0, 1)]
    >>> found = peftjax.merging.cores(deltas)
    >>> peftjax.merging.from_cores(peftjax.merging.average(found.cores), found)
    {'hidden/kernel': Factored((4, 8), rank 4)}
    """
    if set(merged) != set(found.layouts):
        raise ValueError(
            f'the rule gave changes of {sorted(merged)} for cores of {sorted(found.layouts)}'
        )
    result: dict[str, Change] = {}
    for path, change in merged.items():
        if path not in found.bases:
            result[path] = change
            continue
        left, right = found.bases[path]
        result[path] = Factored(product(left, change.matrix()), right, found.layouts[path])
    return result
