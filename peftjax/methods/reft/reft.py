"""ReFT: low-rank edits of hidden states at a few positions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.promotion import lifted
from peftjax.core.roles import require
from peftjax.core.rules import ModuleRule
from peftjax.core.sites import ModuleSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import ModuleUse
from peftjax.methods.reft.positions import edit_at, parse


class Unit(TypedDict):
    weight: Float[jax.Array, '*stack features rank']
    bias: Float[jax.Array, '*stack rank']
    projection: Float[jax.Array, '*stack features rank']


@described
def loreft(
    *,
    rank: int,
    targets: paths.Targets,
    positions: str = 'all',
    tied: bool = False,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""LoReFT: `h' = h + (h W + b - h P) P^T` with orthonormal columns in `P`.

    `h: [batch, length, features]` is the output of each targeted module, usually a whole block
    (`targets=r'layers'` on a scanned model), `W, P: [features, r]`, `b: [r]`. `P` is the `Q` of the
    QR decomposition of a trained matrix, with signs such that an orthonormal matrix is its own `Q`.
    So every step keeps `P` orthonormal. `P` and `W` start independent, so the start is not the
    identity. A unit trains `2 r features + r` numbers and costs `6 N r features + N (2 features + 2
    r)` FLOPs in the forward pass for `N` edited positions, and a QR of `[features, r]`.

    Args:
      rank: `r`, at most `features`.
      targets: regular expressions, full match on module paths.
      positions: `'all'`, or the number of first and last tokens of each example: `'f3'`, `'l2'`,
        `'f3+l2'`. Padding and the other examples of a packed row do not count.
      tied: one unit for the first and last positions instead of one for each.
      dtype: of the trained arrays; the QR is computed in float32, the rest in the model's own.

    Returns:
      A transform whose adapter is `{module path: {unit: {'weight': [*stack, features, r], 'bias':
      [*stack, r], 'projection': [*stack, features, r]}}}`; units are `'all'`, or `'first'` and
      `'last'` as far as `positions` has them, or `'both'` if tied. It acts on activations, so
      `merge` raises.

    Raises:
      ValueError: an unreadable `positions`, a rank below 1, or from `init` above the width; in a
        call with a cache, positions other than `'all'`: it sees a part of an example. `generator`
        calls the model on whole rows.
      TargetError: from `init`, if a pattern matches no module; positions other than `'all'` on a
        model that has declared no roles.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.loreft(rank=2, targets=r'hidden')
    >>> sorted(tx.init(jax.random.key(0), mlp)[0]['hidden'])
    ['all']

    References:
      Wu et al., ReFT, 2024 (arXiv:2404.03592), section 3.2, equation 2; positions as in section 4.
      The authors' code keeps its projection orthonormal by torch's parametrisation: a product of
      Householder reflections on a frozen `[features, features]` base. The QR gives the same
      manifold without that base; the steps of an optimiser with moments differ.
    """
    kind = _Kind('loreft', orthonormal=True, subtracts=True)
    return _reft(kind, rank, targets, positions, tied, dtype)


@described
def noreft(
    *,
    rank: int,
    targets: paths.Targets,
    positions: str = 'all',
    tied: bool = False,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""NoReFT: LoReFT without orthonormality, `h' = h + (h W + b - h P) P^T` for any `P`.

    `2 r features + r` numbers a unit and `6 N r features + N (2 features + 2 r)` FLOPs in the
    forward pass; the start is not the identity.

    Args:
      rank, targets, positions, tied, dtype: see `loreft`.

    Returns:
      A transform with the adapter of `loreft`; `merge` raises.

    Raises:
      ValueError, TargetError: see `loreft`.

    >>> tx = peftjax.noreft(rank=2, targets=r'hidden')
    >>> sorted(tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())[0]['hidden']['all'])
    ['bias', 'projection', 'weight']

    References:
      Wu et al., ReFT, 2024 (arXiv:2404.03592), appendix E; the name is the authors' code's.
    """
    kind = _Kind('noreft', orthonormal=False, subtracts=True)
    return _reft(kind, rank, targets, positions, tied, dtype)


@described
def direft(
    *,
    rank: int,
    targets: paths.Targets,
    positions: str = 'all',
    tied: bool = False,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""DiReFT: `h' = h + (h W + b) P^T`, LoRA on hidden states.

    `2 r features + r` numbers a unit and `4 N r features + N (2 features + r)` FLOPs in the forward
    pass; the start is not the identity.

    Args:
      rank, targets, positions, tied, dtype: see `loreft`.

    Returns:
      A transform with the adapter of `loreft`; `merge` raises.

    Raises:
      ValueError, TargetError: see `loreft`.

    >>> tx = peftjax.direft(rank=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())[0]['hidden']['all']['bias'].shape
    (2,)

    References:
      Wu et al., ReFT, 2024 (arXiv:2404.03592), section 3.2, equation 3.
    """
    kind = _Kind('direft', orthonormal=False, subtracts=False)
    return _reft(kind, rank, targets, positions, tied, dtype)


class _Kind(NamedTuple):
    """The differences between the three methods.

    Attributes:
      name: of the method, for messages.
      orthonormal: the columns of the projection are orthonormal.
      subtracts: True if the edit replaces the projected part; False if it adds to it.
    """

    name: str
    orthonormal: bool
    subtracts: bool


def _reft(
    kind: _Kind,
    rank: int,
    targets: paths.Targets,
    positions: str,
    tied: bool,
    dtype: Any,
) -> PeftTransform:
    if rank < 1:
        raise ValueError(f'rank must be at least 1, got {rank}')
    places = parse(positions, tied)
    units = places.units

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Entry]:
        if places.first is not None:
            require(model.roles, model.takes, f'{kind.name}(positions={positions!r})')
        return {
            site.path: Entry(
                kind.name,
                {
                    unit: _start(kind, paths.fold_in(key, f'{site.path}/{unit}'), site, rank, dtype)
                    for unit in units
                },
            )
            for site in model.sites.match_modules(targets)
        }

    def rules(adapter: dict[str, Entry], own: Any) -> dict[str, ModuleRule]:
        del own
        check_entries(adapter, kind.name, units)
        whole = places.first is not None
        return {
            path: ModuleRule(dict(entry), at(path), whole=whole) for path, entry in adapter.items()
        }

    def at(path: str) -> Callable[[Any, ModuleUse], jax.Array]:
        def apply(leaves: dict[str, Any], use: ModuleUse) -> Float[jax.Array, '... features']:
            _check_width(path, leaves[units[0]]['weight'], use.output)
            edit = functools.partial(_edit, kind)
            if places.first is None:
                return edit(leaves['all'], use.output)
            tokens = use.tokens()
            tokens.check(use.output.shape, f'{kind.name} at {path!r}')
            if tokens.begins or tokens.follows:
                raise ValueError(
                    f'{kind.name}(positions={positions!r}) counts the tokens of an example, and a '
                    'call with a cache sees a part of it; call the model on whole rows, or write '
                    "positions='all'"
                )
            return edit_at(places, edit, leaves, use.output, tokens)

        return apply

    return PeftTransform(start, rules)


def _start(kind: _Kind, key: PRNGKeyArray, site: ModuleSite, rank: int, dtype: Any) -> Unit:
    """The initial arrays of a unit at `site`."""
    if rank > site.features:
        raise ValueError(
            f'rank {rank} is larger than the width of module {site.path!r} {site.shape} '
            f'{site.dtype}; write at most rank={site.features}'
        )
    shape, bound = (*site.stack, site.features, rank), site.features**-0.5
    keys = jax.random.split(key, 3)
    draw = jax.random.uniform(keys[0], shape, dtype, -bound, bound)
    projection = (
        jax.nn.initializers.orthogonal()(keys[1], shape, jnp.float32).astype(dtype)
        if kind.orthonormal
        else jax.random.uniform(keys[1], shape, dtype, -bound, bound)
    )
    bias = jax.random.uniform(keys[2], (*site.stack, rank), dtype, -bound, bound)
    return {'weight': draw, 'bias': bias, 'projection': projection}


def _edit(
    kind: _Kind, unit: Unit, h: Float[jax.Array, '*T features']
) -> Float[jax.Array, '*T features']:
    """The edited states `[..., features]`."""
    weight, bias = unit['weight'].astype(h.dtype), unit['bias'].astype(h.dtype)
    projection = unit['projection']
    if kind.orthonormal:
        projection = orthonormal(projection)
    projection = projection.astype(h.dtype)
    source = h @ weight + lifted(bias, h)
    if kind.subtracts:
        source = source - h @ projection
    return h + source @ projection.T


def orthonormal(
    matrix: Float[jax.Array, '*stack features rank'],
) -> Float32[jax.Array, '*stack features rank']:
    """The `Q` of the decomposition whose `R` has a positive diagonal: `Q` of `Q` is `Q`."""
    q, r = jnp.linalg.qr(matrix.astype(jnp.float32))
    signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return q * signs[..., None, :]


def _check_width(path: str, weight: jax.Array, output: jax.Array) -> None:
    if weight.ndim != 2 or weight.shape[0] != output.shape[-1]:
        raise AdapterError(
            f"the adapter's 'weight' for module {path!r} is {weight.shape} {weight.dtype}, but the "
            f'module returns {output.shape} {output.dtype}. Was it made for another model?'
        )
