"""Top layers: the last few layers of a model train whole."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from peftjax.core import paths
from peftjax.core.leafwise import leafwise
from peftjax.core.model import Model
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.methods.sparse.select import trained_copy

_NUMBER = re.compile(r'(?P<before>(?:.*?[/_])?)(?P<number>\d+)(?=/)')


@described
def top_layers(
    count: int, *, targets: paths.Targets = r'.*', dtype: Any = jnp.float32
) -> PeftTransform:
    r"""Trains all leaves of the last `count` layers; all other leaves stay frozen.

    A layer is found by the axis along which a `scan` slices the leaf (its last entries train), or
    by the first number in the path of a leaf (`layers_3/...`, `layers/3/...`). A new head is not a
    layer: chain `select(r'classifier/.*')`. It adds no FLOPs in the forward pass, and
    the backward pass ends below the trained layers. It can be merged.

    Args:
      count: how many layers.
      targets: regular expressions, full match on leaf paths: which leaves of those layers.
      dtype: of the trained copies, see `select`.

    Returns:
      A transform whose adapter is `{leaf path: leaf}`, of a scanned leaf `[count, ...]`.

    Raises:
      ValueError: a count below 1 or, from `init`, above the number of layers.
      TargetError: from `init`, if no leaf of a layer matches.

    >>> import flax.linen as nn
    >>> deep, x = nn.Sequential([nn.Dense(3), nn.Dense(3), nn.Dense(2)]), jnp.ones((1, 3))
    >>> model = peftjax.wrap(deep, deep.init(jax.random.key(0), x), x)
    >>> sorted(peftjax.top_layers(1).init(jax.random.key(0), model)[0])
    ['layers_2/bias', 'layers_2/kernel']

    References:
      Howard and Ruder, ULMFiT, 2018 (arXiv:1801.06146), section 3.3, for training from the top; the
      baseline `FT-Top2` of Li and Liang, Prefix-Tuning, 2021 (arXiv:2101.00190), section 6.1.
    """
    if count < 1:
        raise ValueError(f'count must be at least 1, got {count}')

    def choose(model: Model) -> list[str]:
        sites = [model.sites.weights[path] for path in model.sites.match_leaves(targets)]
        depths: dict[str, int] = {}
        for site in sites:
            for stack, depth in _place(site):
                depths[stack] = max(depths.get(stack, 0), depth)
        if not depths:
            raise paths.TargetError(
                f'target {targets!r} matches no leaf of a layer: none is scanned, and none has a '
                f'number in its path; it matches {[site.path for site in sites[:5]]}'
            )
        if count > min(depths.values()):
            raise ValueError(f'count is {count}, of {depths} layers; write at most the least')
        return [
            site.path
            for site in sites
            for stack, depth in _place(site)
            if site.scanned or depth > depths[stack] - count
        ]

    def init(leaf: Float[jax.Array, '...'], site: WeightSite) -> Float[jax.Array, '...']:
        if not site.scanned:
            return trained_copy(leaf, dtype)
        axis = site.scanned[0]
        top = jax.lax.slice_in_dim(leaf, leaf.shape[axis] - count, None, axis=axis)
        return trained_copy(top, dtype)

    def change(
        entry: Float[jax.Array, '...'], leaf: Float[jax.Array, '*shape'], own: Any
    ) -> Float[jax.Array, '*shape']:
        del own
        return jax.lax.dynamic_update_slice(
            leaf,
            entry.astype(leaf.dtype),
            [all_ - few for few, all_ in zip(entry.shape, leaf.shape, strict=True)],
        )

    def fits(entry: jax.Array, leaf: Any, own: Any) -> bool:
        del own
        return entry.ndim == leaf.ndim and all(
            few == all_ or few == count <= all_
            for few, all_ in zip(entry.shape, leaf.shape, strict=True)
        )

    return leafwise('top_layers', init, change, choose, fits, keeps='part')


def _place(site: WeightSite) -> list[tuple[str, int]]:
    """The stack of layers of a leaf, and its index in the stack; empty if it is in no layer."""
    if site.scanned:
        return [(site.path, site.shape[site.scanned[0]])]
    found = _NUMBER.match(site.path)
    return [(found['before'], int(found['number']) + 1)] if found else []
