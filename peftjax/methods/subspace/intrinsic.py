"""Intrinsic dimension: a whole model moves inside a random subspace of a few dimensions."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths, readable
from peftjax.core.entries import NODES, Entry, check_own, found_in
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.rules import LeafRule
from peftjax.core.sites import WeightSite, check_real
from peftjax.core.transform import PeftTransform, described
from peftjax.methods.blocks import check_positive
from peftjax.methods.subspace.projections import PROJECTIONS, Projection, changes, numbers_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Subspace:
    """The adapter of `intrinsic`.

    Attributes:
      theta: `[d]`, or `[d - layers]` if there are scales.
      scales: by leaf path. Each has as many axes as its leaf: axes of layers in full size, all
        others of size 1. Empty unless structure-aware.
      leaves: `(path, shape)` of the leaves that move (static).
      projection: the kind of projection (static).
    """

    theta: jax.Array
    scales: dict[str, jax.Array]
    leaves: tuple[tuple[str, tuple[int, ...]], ...] = dataclasses.field(metadata={'static': True})
    projection: Projection = dataclasses.field(default='fastfood', metadata={'static': True})

    @property
    def label(self) -> str:
        """The name in files, with a hash of `leaves`, which no array contains."""
        return f'intrinsic {self.projection} {zlib.crc32(repr(self.leaves).encode()):08x}'

    def __repr__(self) -> str:
        theta = readable.told(self.theta)
        return f'Subspace(theta {theta}, {len(self.scales)} scales, {len(self.leaves)} leaves)'


NODES.append(Subspace)


@described
def intrinsic(
    *,
    dimension: int,
    targets: paths.Targets = r'.*',
    structure_aware: bool = False,
    projection: Projection = 'fastfood',
    seed: int = 0,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Training in a random subspace: `w_i' = w_i + P_i theta`, structure-aware `+ s_i P_i theta`.

    One vector `theta: [d]` moves all chosen leaves, biases and norms too. `P_i` is by default a
    Fastfood projection, a product of Hadamard matrices, signs, a permutation and normal diagonals
    made from hashes of the seed and the leaf's path. Let `D` be the size of all leaves, and `p` the
    smallest power of two that is at least `d`, with the factors `c_i` of at most 32. A step spends
    about `4 D (c_1 + c_2 + ...) + 110 D` FLOPs in the forward pass, `110 D` of them for the hashes,
    and holds a few copies of `D` numbers. A dense projection would cost `2 d D` and hold `d D`. The
    backward pass costs about as much, and `2 T in out` more for the gradient of each kernel. The
    change of each leaf is formed, since all leaves share `theta`, and so is its dense gradient. At
    the start `theta = 0` (and `s_i = 1`), so that `w' = w`. It can be merged.

    Args:
      dimension: how many numbers train, including the scales; `d` without them.
      targets: regular expressions, full match on the paths of the leaves that move.
      structure_aware: True for SAID, with a trained scale for each leaf and layer; False for DID,
        without scales.
      projection: `'fastfood'`; `'dense'`, normal rows that `frozen.own` holds in full, `d D`
        numbers; or `'sparse'`, signs at a share `1 / sqrt(D)` of the places, made from hashes,
        which costs about `2 d sqrt(D)` FLOPs in the forward pass.
      seed: the seed of the projections. `frozen.own` holds what they are made from.
      dtype: of the trained arrays; the projection runs in float32.

    Returns:
      A transform whose adapter is a `Subspace`.

    Raises:
      ValueError: a dimension below 1, an unknown projection or, from `init`, a dimension that
        leaves nothing beside the scales.
      TargetError: from `init`, if a pattern matches no leaf.

    >>> tx = peftjax.intrinsic(dimension=10, structure_aware=True)
    >>> adapter, frozen = tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())
    >>> adapter.theta.shape, len(adapter.scales)
    ((6,), 4)

    References:
      Li et al., Measuring the Intrinsic Dimension of Objective Landscapes, 2018 (arXiv:1804.08838),
      section 2 and S7 for the three projections; Aghajanyan et al., Intrinsic Dimensionality
      Explains the Effectiveness of Language Model Fine-Tuning, 2020 (arXiv:2012.13255), equations 1
      and 3; Le et al., Fastfood, 2013, section 3. Each leaf has its own projection, as in the code
      of Aghajanyan et al.; the rows of `P_i` have length 1, while Li et al. give length 1 to its
      columns.
    """
    check_positive(dimension=dimension)
    if projection not in PROJECTIONS:
        raise ValueError(f'projection {projection!r} is none of {", ".join(PROJECTIONS)}')

    def scales_of(sites: list[WeightSite]) -> dict[str, jax.Array]:
        if not structure_aware:
            return {}
        return {site.path: jnp.ones(_one_a_layer(site), dtype) for site in sites}

    def start(key: PRNGKeyArray, model: Model) -> Subspace:
        del key
        sites = _chosen(model, targets)
        scales = scales_of(sites)
        left = dimension - _count(scales)
        if left < 1:
            raise ValueError(
                f'dimension {dimension} leaves no number beside {dimension - left} scales; write '
                f'at least dimension={dimension - left + 1}, fewer targets, or '
                'structure_aware=False'
            )
        chosen = tuple((site.path, tuple(site.shape)) for site in sites)
        return Subspace(jnp.zeros(left, dtype), scales, chosen, projection)

    def own(model: Model) -> Entry:
        sites = _chosen(model, targets)
        left = dimension - _count(scales_of(sites))
        numbers = {
            site.path: numbers_of(projection, seed, site.path, math.prod(site.shape), left)
            for site in sites
        }
        return Entry('intrinsic', numbers)

    def rules(adapter: Subspace, own: Any) -> dict[str, LeafRule]:
        _check(adapter, projection)
        check_own(own, dict(adapter.leaves), 'intrinsic')
        moves = functools.cache(
            lambda: changes(projection, adapter.theta, adapter.leaves, own)
        )  # computed once for all leaves, when the first is used
        return {
            path: LeafRule(_moved(adapter, path, shape, moves)) for path, shape in adapter.leaves
        }

    return PeftTransform(start, rules, own)


def _chosen(model: Model, targets: paths.Targets) -> list[WeightSite]:
    sites = [model.sites.weights[path] for path in model.sites.match_leaves(targets)]
    for site in sites:
        check_real(site.path, site, 'intrinsic')
    return sites


def _count(scales: Mapping[str, jax.Array]) -> int:
    return sum(scale.size for scale in scales.values())


def _moved(
    adapter: Subspace,
    path: str,
    shape: tuple[int, ...],
    moves: Callable[[], Mapping[str, jax.Array]],
) -> Callable[[Any], jax.Array]:
    def replace(leaf: Float[jax.Array, '*shape']) -> Float[jax.Array, '*shape']:
        if leaf.shape != shape:
            raise AdapterError(
                f'the adapter moves {path!r} of shape {shape}, but these params have '
                f'{leaf.shape} {leaf.dtype}. Was it made for another model?'
            )
        change = moves()[path]
        if path in adapter.scales:
            change = change * adapter.scales[path].astype(jnp.float32)
        return leaf.astype(jnp.float32) + change

    return replace


def _one_a_layer(site: WeightSite) -> tuple[int, ...]:
    return tuple(n if axis in site.scanned else 1 for axis, n in enumerate(site.shape))


def _check(adapter: Any, projection: Projection) -> None:
    if not isinstance(adapter, Subspace):
        raise AdapterError(
            f'intrinsic expects a Subspace as its own init makes it, found '
            f'{found_in(adapter)}. Was it made by another transform, or is it a part of a '
            "chain's adapter?"
        )
    if adapter.projection != projection:
        raise AdapterError(
            f'the adapter was made for a {adapter.projection} projection, but this transform has a '
            f"{projection} one; write intrinsic(projection='{adapter.projection}')"
        )
