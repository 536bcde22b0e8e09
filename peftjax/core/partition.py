"""Splitting a tree in two and putting it together again."""

from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.holes import Hole, is_hole
from peftjax.core.quantized import is_quantized


def partition(tree: Any, targets: paths.Targets) -> tuple[Any, Any]:
    """Splits `tree` into the leaves whose path matches, and the rest.

    Args:
      tree: any pytree.
      targets: which leaves, by `/`-joined path, as `peftjax.targets` says.

    Returns:
      Two trees of the structure of `tree`, each with a `Hole` where the other has the leaf.

    Raises:
      TargetError: a pattern matches no leaf.

    >>> biases, rest = peftjax.partition({'kernel': 1, 'bias': 2}, r'bias')
    >>> biases, rest
    ({'bias': 2, 'kernel': Hole()}, {'bias': Hole(), 'kernel': 1})
    >>> jax.tree.leaves(biases)
    [2]
    """
    chosen = set(paths.choose_names(targets, paths.flatten(tree), 'leaf'))

    def half(inside: bool) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if (paths.join(path) in chosen) == inside else Hole.of(leaf),
            tree,
            is_leaf=is_quantized,
        )

    return half(True), half(False)


def combine(first: Any, second: Any) -> Any:
    """The tree whose leaves are those of `first` and of `second`; the inverse of `partition`.

    Raises:
      ValueError: both have a leaf at one path, or their structures differ.

    >>> peftjax.combine(*peftjax.partition({'kernel': 1, 'bias': 2}, r'bias'))
    {'bias': 2, 'kernel': 1}
    """

    def pick(path: Any, mine: Any, theirs: Any) -> Any:
        if is_hole(mine):
            return theirs
        if is_hole(theirs):
            return mine
        raise ValueError(
            f'both trees have a leaf at {paths.join(path)!r}; a leaf must come from '
            'one of them: use partition to split them'
        )

    return jax.tree_util.tree_map_with_path(pick, first, second, is_leaf=is_hole)
