"""Deltas as adapters of `peftjax.lora`: exact, or of a chosen rank or energy."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from peftjax.core import paths
from peftjax.core.entries import Adapter, Entry
from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.core.numbers import is_plain
from peftjax.core.transform import PeftTransform
from peftjax.merging.changes import Change, Delta, Factored, check_delta, is_matrix, product
from peftjax.methods.low_rank.lora import lora

_Svd = tuple[jax.Array, jax.Array, jax.Array]


class Extracted(NamedTuple):
    """An adapter of `peftjax.lora`.

    Attributes:
      transform, adapter, frozen: as `init` gives them.
      energy: `{leaf path: the share of the squared norm that the adapter holds}`, `[*stack]`.
    """

    transform: PeftTransform
    adapter: Adapter
    frozen: Frozen
    energy: dict[str, jax.Array]


def to_lora(
    delta: Delta, model: Model, *, rank: int | None = None, energy: float | None = None
) -> Extracted:
    r"""A delta as LoRA: exactly, or by the singular values that matter.

    `D = U S V`; `A = U_k sqrt(S_k)`, `B = sqrt(S_k) V_k`, scale 1: the closest matrix of rank `k`
    in the Frobenius norm. A factored change takes two QR decompositions and the decomposition of a
    small core, and no array of the weight's size is formed. For a full change this is LoRA
    extraction from a tuned model.

    Args:
      delta: a delta of matrices; `split` separates biases and norms.
      model: the model that the adapter is for.
      rank: `k`, or less where a matrix is smaller.
      energy: in (0, 1]; instead of `rank`, for each leaf the least rank that holds this share of
        the squared norm of every matrix of its stack. Not under `jit`. Without `rank` and `energy`
        the result is exact: the rank is that of the factors, or the smaller side of a full change.

    Returns:
      The transform, its adapter, and `frozen`, for `adapt`, `save` and `save_adapter`.

    Raises:
      ValueError: both `rank` and `energy`, one out of its range, or a change of a leaf that is not
        a matrix.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tuned = jax.tree.map(lambda leaf: leaf + 1, mlp.params)  # a change of rank one
    >>> kernels, rest = peftjax.merging.split(peftjax.merging.delta_of(tuned, mlp), r'.*/kernel')
    >>> found = peftjax.merging.to_lora(kernels, mlp, energy=0.99)
    >>> found.transform.about.arguments['rank'], sorted(found.adapter)
    (1, ['hidden/kernel', 'out/kernel'])
    """
    check_delta(delta)
    _check_sizes(rank, energy)
    _check_matrices(delta, model)
    adapter, held, ranks = {}, {}, {}
    for path, change in delta.items():
        left, values, right = decomposed(change)
        size = _rank(change, values, rank, energy)
        root = jnp.sqrt(values[..., :size])
        arrays = {
            'a': _padded(left[..., :size] * root[..., None, :], size, -1),
            'b': _padded(root[..., None] * right[..., :size, :], size, -2),
        }
        adapter[path] = Entry('lora', arrays, change.layout)
        held[path], ranks[path] = _share(values, size), size
    transform = lora(
        rank=max(ranks.values()),
        rank_pattern={
            re.escape(path): size for path, size in ranks.items() if size != max(ranks.values())
        }
        or None,
        targets=paths.exactly(delta),
        materialize=any(change.layout.opaque for change in delta.values()),
    )
    return Extracted(transform, adapter, transform.freeze(model, adapter), held)


def _check_sizes(rank: Any, energy: Any) -> None:
    if rank is not None and energy is not None:
        raise ValueError(f'rank={rank} and energy={energy} exclude each other; write one of them')
    if rank is not None and (not isinstance(rank, int | np.integer) or rank < 1):
        raise ValueError(f'rank is {rank!r}; write a whole number of at least 1')
    if energy is not None and not (is_plain(energy) and 0.0 < energy <= 1.0):
        raise ValueError(f'energy is {energy!r}; write a share of the squared norm in (0, 1]')


def _check_matrices(delta: Delta, model: Model) -> None:
    if not delta:
        raise ValueError('the delta is empty, but LoRA needs at least one matrix')
    for path, change in delta.items():
        site = model.sites.weights.get(path)
        if site is None:
            raise ValueError(
                f'the delta changes {path!r}, which this model lacks'
                f'{paths.nearby(path, model.sites.weights)}'
            )
        if not is_matrix(change) or site.vector:
            raise ValueError(
                f'the delta changes {path!r} {change.layout.shape}, which is no matrix that LoRA '
                'could hold. Biases, norms and heads stay apart: write matrices, rest = '
                "peftjax.merging.split(delta, r'.*/kernel'). If it is a matrix, give delta_of the "
                'model and not its parameters alone'
            )


def decomposed(change: Change) -> _Svd:
    """`U: [*stack, in, k]`, `S: [*stack, k]` (descending), `V: [*stack, k, out]` of a change."""
    if not isinstance(change, Factored):
        left, values, right = jnp.linalg.svd(change.matrix(), full_matrices=False)
        return left, values, right
    if change.rank == 0:
        return change.left, jnp.zeros(change.left.shape[:-2] + (0,)), change.right
    first, upper = jnp.linalg.qr(change.left)
    second, lower = jnp.linalg.qr(jnp.swapaxes(change.right, -1, -2))
    left, values, right = jnp.linalg.svd(
        product(upper, jnp.swapaxes(lower, -1, -2)), full_matrices=False
    )
    return product(first, left), values, product(right, jnp.swapaxes(second, -1, -2))


def _rank(change: Change, values: jax.Array, rank: int | None, energy: float | None) -> int:
    most = min(change.layout.inputs, change.layout.outputs)
    if energy is None:
        return max(1, min(values.shape[-1] if rank is None else rank, most))
    squares = np.square(np.asarray(values, np.float64)).reshape(-1, values.shape[-1])
    total = squares.sum(-1, keepdims=True)
    # A stack has one rank, that of its most demanding matrix.
    enough = np.cumsum(squares, -1) >= energy * total * (1 - 1e-7)
    return max(1, *(int(row.argmax()) + 1 for row in enough if len(row)))


def _share(values: jax.Array, size: int) -> Float32[jax.Array, '*stack']:
    squares = jnp.square(values)
    total = squares.sum(-1)
    return jnp.where(total > 0, squares[..., :size].sum(-1) / jnp.where(total > 0, total, 1.0), 1.0)


def _padded(array: jax.Array, size: int, axis: int) -> jax.Array:
    """The array with zeros up to `size` along an axis."""
    missing = size - array.shape[axis]
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return jnp.pad(array, widths) if missing > 0 else array
