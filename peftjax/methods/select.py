"""Selective methods: train some of the base's own leaves (BitFit, LayerNorm tuning, heads)."""

from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.base import AdapterError, Model, PeftTransform, WeightRule, check_entries


def select(targets: paths.Targets) -> PeftTransform:
    r"""Trains the chosen leaves of the base themselves; all others stay frozen.

    The adapter holds a copy `w'` of each chosen leaf `w`, and the model runs with `w'` in its
    place. BitFit is `select(r'.*/bias')`; a new head is `select(r'classifier/.*')`.

    Args:
      targets: regular expressions, full match on leaf paths.

    Returns:
      A transform whose adapter is `{leaf path: leaf}`.

    Raises:
      TargetError: from `init`, if a pattern matches no leaf.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> adapter = peftjax.select(r'.*/bias').init(jax.random.key(0), mlp)
    >>> {path: leaf.shape for path, leaf in adapter.items()}
    {'hidden/bias': (8,), 'out/bias': (3,)}

    References:
      Ben Zaken et al., BitFit, 2021 (arXiv:2106.10199), section 3.
    """

    def init(key: jax.Array, model: Model) -> dict[str, jax.Array]:
        del key
        leaves = paths.flatten(model.params)
        # A copy: the adapter's buffers are donated by training steps, the base's never.
        return {path: leaves[path] + 0 for path in model.sites.match_leaves(targets)}

    def merge(params: Any, adapter: dict[str, jax.Array]) -> Any:
        _check_made_here(adapter)
        leaves = paths.flatten(params)
        for path, leaf in adapter.items():
            _check(path, leaf, leaves)
        return paths.replace(
            params, {path: leaf.astype(leaves[path].dtype) for path, leaf in adapter.items()}
        )

    def rules(adapter: dict[str, jax.Array]) -> dict[str, WeightRule]:
        _check_made_here(adapter)
        return {path: _replacement(path, leaf) for path, leaf in adapter.items()}

    return PeftTransform(init, merge, rules)


def full() -> PeftTransform:
    r"""Full fine-tuning, the baseline: `select(r'.*')`.

    Returns:
      A transform whose adapter holds a copy of every leaf of the base.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> peftjax.summary(peftjax.full(), mlp).percent_of_base
    100.0
    """
    return select(r'.*')


def _replacement(path: str, leaf: jax.Array) -> WeightRule:
    def base(old: jax.Array) -> jax.Array:
        _check(path, leaf, {path: old})
        return leaf.astype(old.dtype)

    return WeightRule(
        (), None, lambda _, use: use.base(use.x), lambda _, matrix: matrix, base, replaces=True
    )


def _check_made_here(adapter: Any) -> None:
    check_entries(
        adapter, lambda leaf: jax.tree_util.all_leaves([leaf]), 'select (or full)', 'array'
    )


def _check(path: str, leaf: jax.Array, leaves: dict[str, Any]) -> None:
    if path not in leaves:
        raise AdapterError(
            f'the adapter replaces {path!r}, which these params lack; near names: '
            f'{paths.near_names(path, leaves)}. Was it made for another model?'
        )
    if leaf.shape != leaves[path].shape:
        raise AdapterError(
            f'the adapter has {path!r} of shape {leaf.shape} {leaf.dtype}, these params '
            f'{leaves[path].shape} {leaves[path].dtype}. Was it made for another model?'
        )
