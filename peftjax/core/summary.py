"""A table of the leaves that train, with counts and percentages."""

import dataclasses
import math
from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.entries import Entry
from peftjax.core.model import Model
from peftjax.core.readable import fold, table, times
from peftjax.core.rules import leaf_rule
from peftjax.core.transform import PeftTransform


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts of a transform on a model. Print it for the table.

    Attributes:
      leaves: `(path in the adapter, shape, dtype, count)` of every leaf that trains.
      trainable: parameters that train.
      added: how many of them the base does not have.
      base: parameters of the base.
      untrained: paths of leaves that the model starts at random (a new head, see `Model.fresh`)
        and that nothing trains.
    """

    leaves: tuple[tuple[str, tuple[int, ...], Any, int], ...]
    trainable: int
    added: int
    base: int
    untrained: tuple[str, ...] = ()

    @property
    def percent_of_base(self) -> float:
        """100 x trainable / base."""
        return 100.0 * self.trainable / self.base

    def __str__(self) -> str:
        rows = fold(
            (path, str(shape), str(dtype), f'{count:,}')
            for path, shape, dtype, count in self.leaves
        )
        total = self.base + self.added
        lines = [
            table(
                [
                    ('trains', 'shape', 'dtype', 'parameters'),
                    *(
                        (path, times(n, shape), dtype, times(n, count))
                        for n, (path, shape, dtype, count) in rows
                    ),
                ]
            ),
            '',
            f'trainable {self.trainable:,} (added {self.added:,}, '
            f'of the base itself {self.trainable - self.added:,})',
            f'= {self.percent_of_base:.4g} % of the base ({self.base:,})',
            f'= {100.0 * self.trainable / total:.4g} % of base + added ({total:,})',
        ]
        if self.untrained:
            modules = dict.fromkeys(path.partition('/')[0] for path in self.untrained)
            lines += [
                f'warning: {", ".join(self.untrained)} start at random and stay so: nothing trains '
                f"them. Chain peftjax.select(r'({'|'.join(modules)})/.*') with this transform"
            ]
        return '\n'.join(lines)

    __repr__ = __str__


def summary(transform: PeftTransform, model: Model) -> Summary:
    """Lists the leaves that train, and counts their parameters beside those of the base.

    Nothing is allocated: the adapter is built abstractly.

    Args:
      transform: the method.
      model: with real or abstract parameters.

    Returns:
      A `Summary`.

    Raises:
      TypeError: the arguments are swapped or of another type.
      TargetError: as `transform.init`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> peftjax.summary(peftjax.select(r'.*/bias'), mlp).trainable
    11
    """
    if isinstance(transform, Model):
        raise TypeError('the arguments are swapped: write peftjax.summary(tx, model)')
    adapter, frozen = jax.eval_shape(transform.init, jax.random.key(0), model)
    base = paths.flatten(model.params)
    rules = transform.rules(adapter, frozen.own)
    replaced = {path for path, rule in rules.items() if leaf_rule(rule) is not None}
    rows = [
        (path, leaf.shape, leaf.dtype, math.prod(leaf.shape))
        for path, leaf in paths.flatten(adapter).items()
    ]
    # What a weight method keeps for a leaf is added, even where its name is that of a base leaf.
    whole = jax.tree.map(
        lambda node: () if _is_of_matrix(node) else node, adapter, is_leaf=_is_of_matrix
    )
    of_base = sum(
        math.prod(leaf.shape)
        for path, leaf in paths.flatten(whole).items()
        if any(path == name or path.endswith('/' + name) for name in replaced)
    )
    trainable = sum(row[3] for row in rows)
    return Summary(
        tuple(rows),
        trainable,
        trainable - of_base,
        sum(math.prod(leaf.shape) for leaf in base.values()),
        tuple(path for path in model.fresh if path not in rules),
    )


def _is_of_matrix(node: Any) -> bool:
    return isinstance(node, Entry) and node.layout is not None
