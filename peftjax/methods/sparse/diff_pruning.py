"""Diff pruning: a dense change, and a learned gate that leaves few of its entries."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Adapter, Entry
from peftjax.core.promotion import widened
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.sparse.fish_mask import largest_entries


class Leaves(TypedDict):
    diff: Float[jax.Array, 'in out']
    gate: Float[jax.Array, 'in out']


_LOW, _HIGH = -1.5, 1.5


@described
def diff_pruning(
    *,
    targets: paths.Targets,
    alpha_init: float = 5.0,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""A sparse difference: `W' = W + z * D`, `z = clip(sigmoid(a + n) (r - l) + l, 0, 1)`.

    `D, a: [in, out]` train; `l = -1.5`, `r = 1.5`. In training, when `predict` is given an
    `adapter_key`, `n = log u - log(1 - u)` with `u` uniform makes `z` a sample of the hard concrete
    distribution, otherwise `n = 0`. Add `weight * expected_entries(adapter)` to the loss, so that
    gates close, and after training keep the largest entries by `keep_entries`. A use forms the
    change: this costs about `12 in out` FLOPs, and its use `2 T in out + T out`, in the forward
    pass. Gradients are dense. Two numbers train for each entry of the matrix until the gates have
    closed. At the start `D = 0`, so that `W' = W`. It can be merged.

    Args:
      targets: which weights, see `Sites.match_weights`.
      alpha_init: the initial value of `a`; gates start open.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'diff': [*stack, in, out], 'gate': [*stack, in,
      out]}}`.

    Raises:
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.diff_pruning(targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['gate'].shape
    (4, 8)

    References:
      Guo et al., Parameter-Efficient Transfer Learning with Diff Pruning, 2020 (arXiv:2012.07463),
      section 3.1; the stretch and the start of the gates are those of the authors' code. Without
      the structured gates of section 3.2. A matrix that is used twice in a call draws its gates for
      each use.
    """

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Leaves:
        del key, site
        return {
            'diff': jnp.zeros(matrix.shape, dtype),
            'gate': jnp.full(matrix.shape, alpha_init, dtype),
        }

    def changed(
        leaves: Leaves, noise: Float[jax.Array, 'in out'] | float
    ) -> Float32[jax.Array, 'in out']:
        return _gates(leaves['gate'], noise) * leaves['diff'].astype(jnp.float32)

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        return jnp.add(*widened((matrix, changed(leaves, 0.0))))

    def apply(leaves: Leaves, use: Use) -> Float[jax.Array, '...']:
        shape = leaves['gate'].shape
        noise = 0.0 if use.key is None else jax.random.logistic(use.key, shape, jnp.float32)
        return use.forward(use.x) + use.product(use.x, changed(leaves, noise))

    return weightwise(
        init_weight, merge, apply, name='diff_pruning', targets=targets, materialize=materialize
    )


def expected_entries(adapter: Adapter) -> Float32[jax.Array, '']:
    r"""The expected number of entries of the change that are not 0.

    The sum of `sigmoid(a - log(-l / r))` over all matrices, the differentiable stand-in for the
    `L0` norm.

    Args:
      adapter: of `diff_pruning`, or of a chain that holds one.

    Returns:
      A scalar, float32.

    Raises:
      ValueError: the adapter holds no gates.

    >>> tx = peftjax.diff_pruning(alpha_init=0.0, targets=r'hidden')
    >>> adapter, frozen = tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())
    >>> float(peftjax.expected_entries(adapter))
    16.0

    References:
      Guo et al., 2020 (arXiv:2012.07463), equation 4; Louizos et al., 2017 (arXiv:1712.01312),
      equation 12.
    """
    shift = math.log(-_LOW / _HIGH)
    gates = (entry['gate'].astype(jnp.float32) for entry in _gated(adapter))
    return sum((jax.nn.sigmoid(gate - shift).sum() for gate in gates), start=jnp.zeros(()))


def keep_entries(
    adapter: Mapping[str, Entry], count: int
) -> tuple[dict[str, Int32[np.ndarray, ' _']], Entry]:
    """The `count` largest entries of the gated change, as a sparse mask and its adapter.

    All other entries are pruned. `fish_mask(positions)` with the adapter computes the pruned model,
    merges, and trains on with the mask fixed, as the paper does at the end.

    Args:
      adapter: of `diff_pruning`, not under a trace.
      count: how many, over all matrices.

    Returns:
      `positions` and `adapter` for `fish_mask`.

    Raises:
      ValueError: there are not so many entries, or the adapter holds no gates.

    >>> tx = peftjax.diff_pruning(targets=r'hidden')
    >>> adapter, frozen = tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())
    >>> positions, sparse = peftjax.keep_entries(peftjax.testing.perturb(adapter, 0), 3)
    >>> sparse['hidden/kernel'].shape
    (3,)

    References:
      Guo et al., 2020 (arXiv:2012.07463), section 3.3.
    """
    _gated(adapter)
    changes = {path: _change(entry).reshape(-1) for path, entry in adapter.items()}
    positions = largest_entries({path: np.abs(leaf) for path, leaf in changes.items()}, count)
    kept = {path: jnp.asarray(changes[path][each]) for path, each in positions.items()}
    return positions, Entry('fish_mask', kept)


def _change(entry: Entry) -> Float32[np.ndarray, '*shape']:
    """The change of the leaf, with closed gates."""
    assert entry.layout is not None
    change = _gates(entry['gate'], 0.0) * entry['diff'].astype(jnp.float32)
    return np.asarray(entry.layout.from_matrix(change))


def _gates(
    gate: Float[jax.Array, '*stack in out'], noise: Float32[jax.Array, 'in out'] | float
) -> Float32[jax.Array, '*stack in out']:
    open_ = jax.nn.sigmoid(gate.astype(jnp.float32) + noise)
    return jnp.clip(open_ * (_HIGH - _LOW) + _LOW, 0.0, 1.0)


def _gated(adapter: Adapter) -> list[Entry]:
    entries = [each for each in jax.tree.leaves(adapter, is_leaf=_is_gated) if _is_gated(each)]
    if not entries:
        raise ValueError('the adapter holds no diff and gate; those of diff_pruning have them')
    return entries


def _is_gated(node: Any) -> TypeGuard[Entry]:
    return isinstance(node, Entry) and set(node) == {'diff', 'gate'}
