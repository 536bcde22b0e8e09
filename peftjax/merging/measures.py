"""How deltas relate to each other and to their base: angles, signs, intruder dimensions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from peftjax.core import paths, readable
from peftjax.core.model import Model
from peftjax.core.quantized import dense
from peftjax.core.sites import check_real
from peftjax.merging.angles import directions
from peftjax.merging.changes import Delta, aligned, check_delta, is_matrix
from peftjax.merging.extract import decomposed
from peftjax.merging.span import gram, sum_of
from peftjax.merging.trimming import as_delta, check_density, keep_largest, matrices


def cosines(deltas: Sequence[Delta]) -> Float32[jax.Array, 'T T']:
    """The cosines of the angles between deltas, each taken as one vector.

    Products of factors are not formed. A delta of zeros has the cosine zero with every other.

    Raises:
      TypeError, ValueError: as for every rule, for other things than deltas, and for changes that
        do not fit each other.

    >>> base = {'w': jnp.zeros(2)}
    >>> both = [peftjax.merging.delta_of({'w': jnp.asarray(w)}, base)
    ...         for w in ([1.0, 0.0], [3.0, 4.0])]
    >>> round(float(peftjax.merging.cosines(both)[0, 1]), 3)
    0.6
    """
    return directions(_inner_products(deltas))


def _inner_products(deltas: Sequence[Delta]) -> Float32[jax.Array, 'T T']:
    size = len(deltas)
    found = [gram(changes).reshape(-1, size, size).sum(0) for changes in aligned(deltas).values()]
    return sum_of(found)


def sign_conflicts(
    deltas: Sequence[Delta], density: float | None = None
) -> Float32[jax.Array, 'T T']:
    r"""For each pair, the share of numbers with opposite signs among those that both change.

    The full change of each leaf is formed, one leaf after another.

    Args:
      deltas: the deltas to compare.
      density: the share of the largest entries of each delta, over the whole model, to compare; all
        by default.

    Returns:
      `[T, T]`, zero on the diagonal; zero too for a pair that changes no number in common.

    Raises:
      ValueError: a density outside (0, 1], or deltas that do not fit each other.

    >>> base = {'w': jnp.zeros(4)}
    >>> both = [peftjax.merging.delta_of({'w': jnp.asarray(w)}, base)
    ...         for w in ([1.0, -2.0, 3.0, 0.0], [1.0, 1.0, -1.0, 1.0])]
    >>> round(float(peftjax.merging.sign_conflicts(both)[0, 1]), 3)  # Two of three.
    0.667

    References:
      Yadav et al., TIES-Merging, 2023 (arXiv:2306.01708).
    """
    found, size = aligned(deltas), len(deltas)
    parts = [{path: changes[i] for path, changes in found.items()} for i in range(size)]
    if density is not None:
        check_density(density)
        parts = [as_delta(keep_largest(matrices(each), density, 'model'), each) for each in parts]
    opposite = common = jnp.zeros((size, size))
    for path in found:
        signs = [jnp.sign(part[path].matrix()) for part in parts]
        common += _counts(signs, lambda one, other: one * other != 0)
        opposite += _counts(signs, lambda one, other: one * other < 0)
    return opposite / jnp.maximum(common, 1.0)


def _counts(
    signs: Sequence[jax.Array], meets: Callable[[jax.Array, jax.Array], jax.Array]
) -> Float32[jax.Array, 'T T']:
    """For each pair, at how many numbers `meets` holds; counted in whole numbers."""
    rows = [jnp.stack([jnp.count_nonzero(meets(a, b)) for b in signs]) for a in signs]
    return jnp.stack(rows).astype(jnp.float32)


def intruder_dimensions(
    model: Model | Any, delta: Delta, *, first: int = 10, threshold: float = 0.5
) -> dict[str, Int32[np.ndarray, '*stack']]:
    r"""Counts the leading singular vectors of a tuned weight that are unlike all of the base's.

    One of the `first` singular vectors `u_j` of `W + D` on the side of the outputs counts if `max_i
    |u_j . v_i| < threshold` over the singular vectors `v_i` of `W`. The paper finds them after LoRA
    and not after full fine-tuning, and finds that models with them forget more. Each matrix takes
    two full decompositions.

    Args:
      model: the base, or its parameters; a quantised leaf is dequantised.
      delta: the delta of an adapter or of a tuned model, or the result of a rule.
      first: how many vectors are compared.
      threshold: the cosine below which a vector counts as new.

    Returns:
      `{leaf path: count}` for the matrices among the changes.

    Raises:
      ValueError: a path is not in the model, or of another shape.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> delta = peftjax.merging.delta(mlp, tx, *tx.init(jax.random.key(0), mlp))
    >>> peftjax.merging.intruder_dimensions(mlp, delta)  # A fresh adapter changes nothing.
    {'hidden/kernel': array(0, dtype=int32)}

    References:
      Shuttleworth et al., LoRA vs Full Fine-tuning: An Illusion of Equivalence, 2024
      (arXiv:2410.21228); the authors' code, which takes the side of the outputs.
    """
    check_delta(delta)
    leaves = paths.flatten(model.params if isinstance(model, Model) else model)
    found = {}
    for path, change in delta.items():
        if not is_matrix(change):
            continue
        if path not in leaves or leaves[path].shape != change.layout.shape:
            there = leaves[path].shape if path in leaves else 'nothing'
            raise ValueError(
                f'the delta changes {path!r} {change.layout.shape}, but the model has {there}'
                f'{paths.nearby(path, leaves)}'
            )
        check_real(path, leaves[path], 'intruder_dimensions')
        before = change.layout.to_matrix(jnp.asarray(dense(leaves[path]), jnp.float32))
        after = before + change.matrix()
        pairs = zip(_single(before), _single(after), strict=True)
        counts = [_new_vectors(one, other, first, threshold) for one, other in pairs]
        found[path] = np.asarray(counts, np.int32).reshape(change.layout.stack_shape)
    return found


def _single(matrix: Float32[jax.Array, '*stack in out']) -> list[jax.Array]:
    """The matrices of a stack, as a list."""
    return list(matrix.reshape(-1, *matrix.shape[-2:]))


def _new_vectors(before: jax.Array, after: jax.Array, first: int, threshold: float) -> int:
    old, new = (jnp.linalg.svd(each, full_matrices=False)[2] for each in (before, after))
    likest = jnp.abs(jnp.matmul(new[:first], old.T, precision='highest')).max(1)
    return int((likest < threshold).sum())


def table(deltas: Mapping[str, Delta]) -> str:
    """Deltas side by side, as text: norm, stable rank, and cosines.

    The stable rank of a matrix is `|D|_F^2 / |D|_2^2`; the table has the mean over matrices.

    Args:
      deltas: the deltas by name.

    Raises:
      TypeError, ValueError: as for every rule, for other things than deltas, and for changes that
        do not fit each other.

    >>> base = {'w': jnp.zeros(2)}
    >>> print(peftjax.merging.table({
    ...     name: peftjax.merging.delta_of({'w': jnp.asarray(w)}, base)
    ...     for name, w in (('first', [1.0, 0.0]), ('second', [3.0, 4.0]))}))
    delta   norm  stable rank  cos first  cos second
    ------------------------------------------------
    first   1     -            1.000      0.600
    second  5     -            0.600      1.000
    """
    if not isinstance(deltas, Mapping):
        raise TypeError(f'deltas is a {type(deltas).__name__}; write {{name: delta, ...}}')
    inner = _inner_products(list(deltas.values()))
    angles = np.asarray(directions(inner))
    rows = [('delta', 'norm', 'stable rank', *(f'cos {name}' for name in deltas))]
    for i, (name, delta) in enumerate(deltas.items()):
        cells = (f'{each:.3f}' for each in angles[i])
        rows.append((name, f'{float(inner[i, i]) ** 0.5:.4g}', _stable_rank(delta), *cells))
    return readable.table(rows)


def _stable_rank(delta: Delta) -> str:
    ranks = []
    for change in delta.values():
        if is_matrix(change):
            squares = np.square(np.asarray(decomposed(change)[1], np.float64))
            squares = squares.reshape(-1, squares.shape[-1])
            ranks += [row.sum() / row[0] for row in squares if row.size and row[0] > 0]
    return f'{np.mean(ranks):.2f}' if ranks else '-'


def heat_map(axes: Any, values: Any, names: Sequence[str]) -> None:
    """Draws a matrix of cosines or of conflicts on Matplotlib axes, with its numbers.

    Args:
      axes: Matplotlib axes, such as `figure.subplots()`.
      values: `[T, T]`.
      names: the names of the deltas.

    Raises:
      ValueError: the numbers of names and of rows differ.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> peftjax.merging.heat_map(axes, jnp.eye(2), ['first', 'second'])
    >>> [text.get_text() for text in axes.texts]
    ['1.00', '0.00', '0.00', '1.00']
    """
    array = np.asarray(values)
    if array.shape != (len(names), len(names)):
        raise ValueError(f'values has shape {array.shape} for {len(names)} names')
    axes.imshow(array, cmap='RdBu_r', vmin=-1.0, vmax=1.0)
    axes.set_xticks(range(len(names)), names, rotation=45, ha='right')
    axes.set_yticks(range(len(names)), names)
    for row, column in np.ndindex(array.shape):
        # White on the dark ends of the colours.
        colour = 'white' if abs(array[row, column]) > 0.6 else 'black'
        axes.text(column, row, f'{array[row, column]:.2f}', ha='center', va='center', color=colour)
