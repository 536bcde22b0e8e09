"""Lifts functions of one parameter leaf to a transform of a model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.base import AdapterError, Model, PeftTransform, WeightRule, check_entries
from peftjax.core.quantized import dense
from peftjax.core.sites import WeightSite
from peftjax.core.weightwise import refuse_quantized


def leafwise(
    name: str,
    init_leaf: Callable[[Float[jax.Array, '*shape'], WeightSite], Float[jax.Array, '*entry']],
    change_leaf: Callable[
        [Float[jax.Array, '*entry'], Float[jax.Array, '*shape'], str], Float[jax.Array, '*shape']
    ],
    choose: Callable[[Model], list[str]],
    fits: Callable[[Float[jax.Array, '*entry'], Any, str], bool],
    replaces: bool = False,
) -> PeftTransform:
    """A transform that puts another array of the same shape in the place of chosen leaves.

    For methods on leaves of any rank, biases and norms too, that need no cheaper route than the
    changed leaf itself: one array trains for each leaf.

    Args:
      name: of the method, for messages.
      init_leaf: `(leaf, site) -> entry`.
      change_leaf: `(entry, leaf, path) -> leaf` of the same shape; the dtype is brought back.
      choose: `(model) -> paths` of the leaves.
      fits: `(entry, leaf, path)`: whether an entry can have been made for this leaf.
      replaces: whether `change_leaf` pays no heed to (a part of) the leaf, as a trained copy does;
        it then must come first in a chain.

    Returns:
      A transform whose adapter is `{leaf path: entry}`.
    """

    def init(key: PRNGKeyArray, model: Model) -> dict[str, jax.Array]:
        del key
        leaves = paths.flatten(model.params)
        sites = model.sites.weights
        return {path: init_leaf(dense(leaves[path]), sites[path]) for path in choose(model)}

    def changed(path: str, entry: jax.Array, leaves: dict[str, Any]) -> Float[jax.Array, '...']:
        _check(path, entry, leaves)
        leaf = dense(leaves[path])
        return jnp.asarray(change_leaf(entry, leaf, path), leaf.dtype)

    def merge(params: Any, adapter: dict[str, jax.Array]) -> Any:
        check_made_here(adapter)
        leaves = paths.flatten(params)
        if not replaces:
            refuse_quantized(leaves, adapter)
        return paths.replace(
            params, {path: changed(path, entry, leaves) for path, entry in adapter.items()}
        )

    def rules(adapter: dict[str, jax.Array]) -> dict[str, WeightRule]:
        check_made_here(adapter)
        return {path: rule(path, entry) for path, entry in adapter.items()}

    def rule(path: str, entry: jax.Array) -> WeightRule:
        return WeightRule(
            (),
            None,
            lambda _, use: use.base(use.x),
            lambda _, matrix: matrix,
            lambda leaf: changed(path, entry, {path: leaf}),
            replaces=replaces,
        )

    def check_made_here(adapter: Any) -> None:
        check_entries(adapter, lambda leaf: jax.tree_util.all_leaves([leaf]), name, 'array')

    def _check(path: str, entry: jax.Array, leaves: dict[str, Any]) -> None:
        if path not in leaves:
            raise AdapterError(
                f'the adapter of {name} has {path!r}, which these params lack; near names: '
                f'{paths.near_names(path, leaves)}. Was it made for another model?'
            )
        if not fits(entry, leaves[path], path):
            raise AdapterError(
                f'the adapter of {name} has {path!r} of shape {entry.shape} {entry.dtype}, which '
                f'does not fit these params: {leaves[path].shape} {leaves[path].dtype}. Was it '
                'made for another model?'
            )

    return PeftTransform(init, merge, rules)
