"""FISH Mask: trains the entries of a model that matter most to the data."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact, Int32

from peftjax.core import paths
from peftjax.core.leafwise import leafwise
from peftjax.core.model import Model
from peftjax.core.promotion import wider
from peftjax.core.sites import WeightSite, check_real
from peftjax.core.transform import PeftTransform, described


@described
def fish_mask(positions: Mapping[str, Any], *, dtype: Any = jnp.float32) -> PeftTransform:
    r"""A fixed sparse mask: `w' = w + v` at chosen entries of the base, `w' = w` elsewhere.

    The entries are those with the largest Fisher information, found once before training by
    `peftjax.train.fisher` and `largest_entries`; any others will do as well. A leaf of `D`
    entries of which `k` train holds `k` numbers. Each step adds them into a copy of the leaf (`k`
    FLOPs), and their gradient is gathered from that of the leaf, which is dense (`2 T in out` for a
    kernel). At the start `v = 0`, so that `w' = w`. It can be merged.

    Args:
      positions: `{leaf path: int [k]}`, flat indices into the whole leaf, including its layers.
        They are in `frozen.own`.
      dtype: of the trained arrays.

    Returns:
      A transform whose adapter is `{leaf path: [k]}`.

    Raises:
      ValueError: no leaf, or indices that are repeated, negative, or (from `init`) beyond the size
        of the leaf.
      TargetError: from `init`, for a path that is not a leaf of the model.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.fish_mask({'hidden/kernel': [0, 9], 'out/bias': [2]})
    >>> peftjax.summary(tx, mlp).trainable
    3

    References:
      Sung et al., Training Neural Networks with Fixed Sparse Masks, 2021 (arXiv:2111.09839),
      sections 3.1 and 3.2. The authors mask the gradient of the whole model; the entries and their
      updates are the same.
    """
    places = {path: np.asarray(each, np.int32).reshape(-1) for path, each in positions.items()}
    for path, each in places.items():
        if not len(each) or len(np.unique(each)) < len(each) or each.min() < 0:
            raise ValueError(
                f'positions of {path!r} must be different whole numbers of at least 0, at least '
                f'one, found {len(each)}, least {each.min(initial=0)}, {len(np.unique(each))} of '
                'them different; leave a leaf out that has none'
            )
    if not places:
        raise ValueError("positions is empty; write for example {'dense/kernel': [0, 9]}")

    def choose(model: Model) -> list[str]:
        unknown = sorted(set(places) - set(model.sites.weights))
        if unknown:
            near = paths.nearby(unknown[0], model.sites.weights)
            raise paths.TargetError(f'{unknown[0]!r} is no leaf of this model{near}')
        return [path for path in model.sites.weights if path in places]

    def init(leaf: Inexact[jax.Array, '...'], site: WeightSite) -> Float[jax.Array, ' entries']:
        del leaf
        return jnp.zeros(len(own(site)), dtype)

    def own(site: WeightSite) -> Int32[np.ndarray, ' entries']:
        check_real(site.path, site, 'fish_mask')
        size = math.prod(site.shape)
        if places[site.path].max() >= size:
            raise ValueError(
                f'position {places[site.path].max()} is beyond the {size} entries of '
                f'{site.path!r} {site.shape} {site.dtype}'
            )
        return places[site.path]

    def change(
        entry: Float[jax.Array, ' entries'], leaf: Float[jax.Array, '*shape'], own: Any
    ) -> Float[jax.Array, '*shape']:
        wide = leaf.reshape(-1).astype(wider(leaf, entry))
        # No place is negative: `fish_mask` refuses that.
        added = wide.at[own].add(entry, unique_indices=True, wrap_negative_indices=False)
        return added.reshape(leaf.shape)

    def fits(entry: jax.Array, leaf: Any, own: Any) -> bool:
        return entry.shape == own.shape

    return leafwise('fish_mask', init, change, choose, fits, own=own)


def largest_entries(
    scores: Any, count: int, targets: paths.Targets = r'.*'
) -> dict[str, Int32[np.ndarray, ' _']]:
    """Flat indices of the `count` largest entries of all chosen leaves together.

    Args:
      scores: a tree of arrays, as `peftjax.train.fisher` gives it.
      count: how many, over all leaves.
      targets: which leaves, by path, see `peftjax.targets`.

    Returns:
      `{leaf path: int32 [k], ascending}` for the leaves that hold any, as `fish_mask` takes them.

    Raises:
      ValueError: there are not so many entries.
      TargetError: a pattern matches no leaf.

    >>> peftjax.largest_entries({'a': jnp.asarray([3.0, 1.0]), 'b': jnp.asarray([2.0])}, 2)
    {'a': array([0], dtype=int32), 'b': array([0], dtype=int32)}

    References:
      Sung et al., 2021 (arXiv:2111.09839), section 3.2.
    """
    leaves = paths.flatten(scores)
    chosen = {
        path: np.asarray(leaves[path]).reshape(-1)
        for path in paths.choose_names(targets, leaves, 'leaf of the scores')
    }
    values = np.concatenate([np.zeros(0, np.float32), *chosen.values()])
    if not 0 < count <= len(values):
        raise ValueError(f'count must lie between 1 and the {len(values)} entries, got {count}')
    kept = np.zeros(len(values), bool)
    kept[np.argpartition(-values, count - 1)[:count]] = True
    ends = np.cumsum([len(leaf) for leaf in chosen.values()])[:-1]
    places = (np.flatnonzero(part).astype(np.int32) for part in np.split(kept, ends))
    return {path: each for path, each in zip(chosen, places, strict=True) if len(each)}
