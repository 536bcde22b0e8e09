"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products."""

import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries, found_in
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.rules import ModuleRule
from peftjax.core.sites import ModuleSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import ModuleUse
from peftjax.methods.bottleneck.reading import (
    Activation,
    Reads,
    activation_of,
    check_reads,
    read,
    width,
)

_NAMES = {'down_left', 'down_bias', 'up_left', 'up_bias'}
_FACTORS = {'down_right', 'up_right'}
_RULES = {'down_rule', 'up_rule'}


@described
def compacter(
    *,
    size: int,
    targets: paths.Targets,
    terms: int = 4,
    rank: int | None = 1,
    shared_rule: bool = True,
    activation: Activation = 'gelu',
    reads: Reads = 'output',
    init_range: float = 1e-4,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Compacter: `h' = h + f(x D + d) U + u` with `D = sum_i A_i (x) (L_i R_i)`, `U` likewise.

    `(x)` is the Kronecker product, `n` the number of terms, `A: [n, n, n]` one trained array that
    every site shares, `D: [width, m]`, `L: [n, width/n, r]`, `R: [n, r, m/n]`; `U: [m, features]`.
    Neither matrix is formed: a use costs `2 T n r (width + 2 n² + 2 m + features) + T (2 m + 3
    features)` FLOPs in the forward pass, for a ReLU as `f`.
    A site trains `r (width + 2 m + features) + m + features` numbers, all sites together `n³` more.
    With `rank=None` the terms have no factors, `A_i (x) L_i` with `L: [n, width/n, m/n]`, and
    together with `shared_rule=False`, where each matrix has its own `A`, this is the PHM adapter to
    which the paper compares.

    Compacter places it after both sublayers (`targets=r'layers/(attention|ffn)/branch'` on BERT),
    Compacter++ only after the feed-forward sublayer (`targets=r'layers/ffn/branch'`,
    `reads='after'` as AdapterHub has it).

    Args:
      size: `m`, a multiple of `terms`.
      targets: regular expressions, full match on module paths.
      terms: `n`; it divides the width of each site.
      rank: `r`, or None for terms without factors: the products of a use then cost `2 T m (width +
        features + 2 n²)`.
      shared_rule: one `A` for all matrices, or one for each.
      activation, reads: see `bottleneck`.
      init_range: deviation of `A` at the start; `L` and `R` are Glorot normal, biases zero. The
        start is close to the identity, but not equal to it.
      dtype: of the trained arrays; the computation runs in the model's own.

    Returns:
      A transform whose adapter is `{'shared': {'rule': A}, 'sites': {module path: {'down_left':
      [*stack, n, width/n, r], 'down_right': [*stack, n, r, m/n], 'down_bias', 'up_left',
      'up_right', 'up_bias'}}}`; without `rank` there is no `'down_right'` and no `'up_right'`,
      without `shared_rule` no `'shared'`, but a `'down_rule'` and an `'up_rule'` at each site. It
      acts on activations, so `merge` raises.

    Raises:
      ValueError: a size that `terms` does not divide; from `init` a module's width, with its path.
      TargetError: from `init`, if a pattern matches no module, or a module without the input that
        it reads.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.compacter(size=4, terms=2, targets=r'hidden')
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> adapter['shared']['rule'].shape, adapter['sites']['hidden']['down_left'].shape
    ((2, 2, 2), (2, 4, 1))

    References:
      Karimi Mahabadi et al., Compacter, 2021 (arXiv:2106.04647), sections 3 and 4, equations 5 to
      8; for terms without factors equation 4. The authors' code draws `L` and `R` Glorot uniform;
      AdapterHub's draws them normal, and so do we.
    """
    if min(size, terms, rank or 1) < 1 or size % terms:
        raise ValueError(
            f'size must be a multiple of terms, and both and rank at least 1; got size={size}, '
            f'terms={terms}, rank={rank}'
        )
    check_reads(reads)
    function = activation_of(activation)
    names = _NAMES.union(() if rank is None else _FACTORS, () if shared_rule else _RULES)

    def rule(
        key: PRNGKeyArray, name: str, stack: tuple[int, ...] = ()
    ) -> Float[jax.Array, '*stack terms terms terms']:
        shape = (*stack, terms, terms, terms)
        return init_range * jax.random.normal(paths.fold_in(key, name), shape, dtype)

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Any]:
        sites = {}
        for site in model.sites.match_modules(targets):
            sizes = width(site, reads, model), size, site.features
            _check_divides(terms, sizes, site)
            here = paths.fold_in(key, site.path)
            arrays = _start(here, sizes, terms, rank, site.stack, dtype)
            if not shared_rule:
                arrays |= {name: rule(here, name, site.stack) for name in _RULES}
            sites[site.path] = Entry('compacter', arrays)
        if not shared_rule:
            return {'sites': sites}
        return {'shared': {'rule': rule(key, 'shared')}, 'sites': sites}

    def rules(adapter: dict[str, Any], own: Any) -> dict[str, ModuleRule]:
        del own
        _check_adapter(adapter, {'shared', 'sites'} if shared_rule else {'sites'}, names)
        shared: dict[str, Any] = {}
        if shared_rule:
            shared = dict.fromkeys(_RULES, adapter['shared']['rule'])
        apply = functools.partial(_apply, function, reads)
        return {
            path: ModuleRule(dict(entry), functools.partial(apply, path, shared))
            for path, entry in adapter['sites'].items()
        }

    return PeftTransform(start, rules)


def _start(
    key: PRNGKeyArray,
    sizes: tuple[int, int, int],
    terms: int,
    rank: int | None,
    stack: tuple[int, ...],
    dtype: Any,
) -> dict[str, Float[jax.Array, '...']]:
    """The arrays that a site trains besides its rules.

    sizes: the width that is read, `m`, and the features that are added to.
    """
    arrays, draw = {}, jax.nn.initializers.glorot_normal()
    for name, (inputs, outputs) in zip(('down', 'up'), itertools.pairwise(sizes), strict=True):
        rows, columns = inputs // terms, outputs // terms
        shapes = {'left': (rows, columns)}
        if rank is not None:
            shapes = {'left': (rows, rank), 'right': (rank, columns)}
        for side, shape in shapes.items():
            leaf = f'{name}_{side}'
            arrays[leaf] = draw(paths.fold_in(key, leaf), (*stack, terms, *shape), dtype)
        arrays[f'{name}_bias'] = jnp.zeros((*stack, outputs), dtype)
    return arrays


def _apply(
    function: Callable[[jax.Array], jax.Array],
    reads: Reads,
    path: str,
    shared: Mapping[str, jax.Array],
    leaves: dict[str, Float[jax.Array, '...']],
    use: ModuleUse,
) -> Float[jax.Array, '... features']:
    """`h + f(x D + d) U + u` at one call of a module."""
    x = read(use, reads)
    here = {name: leaf.astype(x.dtype) for name, leaf in {**leaves, **shared}.items()}
    _check_widths(path, here, x, use.output)
    flat = x.reshape(-1, x.shape[-1])
    inner = function(_product(flat, here, 'down') + here['down_bias'][None])
    added = _product(inner, here, 'up') + here['up_bias'][None]
    return use.output + added.reshape(use.output.shape)


def _product(
    x: Float[jax.Array, 'T width'], leaves: Mapping[str, Float[jax.Array, '...']], name: str
) -> Float[jax.Array, 'T features']:
    """`x @ sum_i kron(rule[i], left[i] @ right[i])` without the matrix."""
    rule, left = leaves[f'{name}_rule'], leaves[f'{name}_left']
    right = leaves.get(f'{name}_right')
    blocks = x.reshape(x.shape[0], rule.shape[0], -1)
    # The blocks are mixed on the narrow side.
    if right is not None:
        mixed = jnp.einsum('tair,iab->tbir', jnp.einsum('tap,ipr->tair', blocks, left), rule)
        product = jnp.einsum('tbir,irq->tbq', mixed, right)
    elif left.shape[1] > left.shape[2]:
        product = jnp.einsum('taiq,iab->tbq', jnp.einsum('tap,ipq->taiq', blocks, left), rule)
    else:
        product = jnp.einsum('tbip,ipq->tbq', jnp.einsum('tap,iab->tbip', blocks, rule), left)
    return product.reshape(x.shape[0], -1)


def _check_divides(terms: int, sizes: tuple[int, int, int], site: ModuleSite) -> None:
    for wide in sizes:
        if wide % terms:
            raise ValueError(
                f'terms={terms} does not divide the width {wide} of module {site.path!r} '
                f'{site.shape} {site.dtype}; write terms as a divisor of it'
            )


def _check_adapter(adapter: Any, parts: set[str], names: Collection[str]) -> None:
    if not isinstance(adapter, Mapping) or set(adapter) != parts:
        raise AdapterError(
            f'compacter with these settings expects an adapter of {sorted(parts)} as its own '
            f'init makes it, found {found_in(adapter)}. Was it made by another transform or '
            "with other settings, or is it a part of a chain's adapter?"
        )
    check_entries(adapter['sites'], 'compacter', names)


def _check_widths(path: str, leaves: Any, x: jax.Array, output: jax.Array) -> None:
    left, right = leaves['down_left'], leaves.get('up_right', leaves['up_left'])
    reads, adds = left.shape[0] * left.shape[1], right.shape[0] * right.shape[2]
    if (reads, adds) != (x.shape[-1], output.shape[-1]):
        raise AdapterError(
            f'the adapter for module {path!r} reads width {reads} and adds to {adds} '
            f'{left.dtype}, but the module has {x.shape} {x.dtype} and {output.shape} '
            f'{output.dtype}. Was it made for another model?'
        )
