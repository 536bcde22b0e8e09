"""Lifts functions of one parameter leaf to a transform of a model."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entry, check_own
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.quantized import dense
from peftjax.core.rules import LeafRule
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform


def leafwise(
    name: str,
    init_leaf: Callable[[Float[jax.Array, '*shape'], WeightSite], Float[jax.Array, '*entry']],
    change_leaf: Callable[[Float[jax.Array, '*entry'], Any, Any], Float[jax.Array, '*shape']],
    choose: Callable[[Model], list[str]],
    fits: Callable[[Any, Any, Any], bool],
    *,
    own: Callable[[WeightSite], Any] = lambda site: (),
    keeps: Literal['all', 'part', 'nothing'] = 'all',
) -> PeftTransform:
    """A transform that replaces chosen leaves by arrays of the same shape.

    For methods on leaves of any rank, including biases and norms, that compute the changed leaf
    itself. One array trains for each leaf.

    Args:
      name: of the method.
      init_leaf: `(leaf, site) -> entry`.
      change_leaf: `(entry, leaf, own) -> leaf` of the same shape; the result is cast to the leaf's
        dtype.
      choose: `(model) -> paths` of the leaves.
      fits: `(entry, leaf, own)`: True if the entry fits this leaf.
      own: `(site) -> own`, arrays that do not train.
      keeps: how much of the leaf the result keeps, see `LeafRule`. Unless it is `'all'`, the
        transform must
        come first in a chain.

    Returns:
      A transform whose adapter is an `Entry` `{leaf path: array}`.
    """

    def start(key: PRNGKeyArray, model: Model) -> Entry:
        del key
        leaves, sites = paths.flatten(model.params), model.sites.weights
        chosen = choose(model)
        return Entry(name, {path: init_leaf(dense(leaves[path]), sites[path]) for path in chosen})

    def own_of(model: Model) -> Entry:
        sites = model.sites.weights
        given = {path: own(sites[path]) for path in choose(model)}
        return Entry(name, jax.tree.map(jnp.asarray, given))

    def rules(adapter: Entry, numbers: Mapping[str, Any]) -> dict[str, LeafRule]:
        check_entry(adapter, name)
        check_own(numbers, adapter, name)
        return {path: rule(path, entry, numbers[path]) for path, entry in adapter.items()}

    def rule(path: str, entry: jax.Array, numbers: Any) -> LeafRule:
        def replace(leaf: Any) -> jax.Array:
            if not fits(entry, leaf, numbers):
                raise AdapterError(
                    f'the adapter of {name} has {path!r} of shape {entry.shape} {entry.dtype}, '
                    f'which does not fit these params: {leaf.shape} {leaf.dtype}. Was it made for '
                    'another model?'
                )
            return change_leaf(entry, leaf, numbers)

        return LeafRule(replace, keeps)

    return PeftTransform(start, rules, own_of)
