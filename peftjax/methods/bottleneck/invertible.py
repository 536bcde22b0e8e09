"""Invertible adapters: a reversible map after the embeddings, undone before the output."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.paths import TargetError
from peftjax.core.promotion import lifted
from peftjax.core.rules import ModuleRule
from peftjax.core.sites import ModuleSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import ModuleUse
from peftjax.methods.blocks import check_positive
from peftjax.methods.bottleneck.reading import Activation, activation_of

_LEAVES = frozenset(
    f'{half}_{leaf}' for half in 'fg' for leaf in ('down', 'down_bias', 'up', 'up_bias')
)


@described
def invertible_adapter(
    *,
    size: int,
    targets: paths.Targets,
    inverse: str | None = None,
    activation: Activation = 'relu',
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""MAD-X's invertible adapter: a coupling of the two halves of every token's vector.

    `e1, e2 = split(e); o1 = e1 + F(e2); o2 = e2 + G(o1)`, each of `F` and `G` a bottleneck
    `f(x D + d) U + u`. It adapts to the vocabulary of a language. The inverse, `e2 = o2 -
    G(o1); e1 = o1 - F(e2)`, comes before the output embedding and has the same weights, so that
    predictions are in the space of the vocabulary again. `width = e.shape[-1]`, if it is odd, the
    second half is longer: `2 m width + 2 m + width` parameters and `4 T m width` FLOPs each way.
    The start is close to the identity, but not equal to it. It acts on activations, so `merge`
    raises.

    Args:
      size: `m`; AdapterHub takes a quarter of the width.
      targets: regular expression, full match on the path of the module whose output are the vectors
        of tokens: `r'embeddings'` on BERT, `r'embed_tokens'` on Llama.
      inverse: path of the module whose output the output embedding reads, `'norm'` on Llama; None
        for a model that predicts no tokens.
      activation: `f`, by name or a function.
      dtype: of the trained arrays; the computation runs in the model's own.

    Returns:
      A transform whose adapter is `{module path: {'f_down': [width - width // 2, m], 'f_down_bias':
      [m], 'f_up': [m, width // 2], 'f_up_bias': [width // 2], 'g_down': ..., ...}}`.

    Raises:
      ValueError: a size below 1, or an unknown activation.
      TargetError: from `init`, unless the target is one module outside of loops and `inverse`
        another as wide.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.invertible_adapter(size=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden']['f_down'].shape
    (4, 2)

    References:
      Pfeiffer et al., MAD-X, 2020 (arXiv:2005.00052), section 4.3, equations 4 and 5, which are
      NICE's (Dinh et al., 2014, arXiv:1410.8516). Weights start normal of deviation 0.02 and biases
      zero, as the authors' library has it; its other coupling, GLOW's, is not the paper's.
    """
    check_positive(size=size)
    function = activation_of(activation)

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Entry]:
        site = _site(model, targets, inverse)
        leaves = _start(paths.fold_in(key, site.path), site.features, size, dtype)
        return {site.path: Entry('invertible_adapter', leaves)}

    def rules(adapter: dict[str, Entry], own: Any) -> dict[str, ModuleRule]:
        del own
        check_entries(adapter, 'invertible_adapter', _LEAVES)
        ((path, entry),) = adapter.items()
        ways = {path: _forth} if inverse is None else {path: _forth, inverse: _back}
        leaves = dict(entry)
        return {
            path: ModuleRule(leaves, functools.partial(_apply, path, way, function))
            for path, way in ways.items()
        }

    return PeftTransform(start, rules)


def _site(model: Model, targets: paths.Targets, inverse: str | None) -> ModuleSite:
    """The module after which the adapter acts; raises unless it fits that of the inverse."""
    found = model.sites.match_modules(targets)
    if len(found) != 1 or found[0].stack:
        raise TargetError(
            f'target {targets!r} matches {[(s.path, *s.stack) for s in found]}; an invertible '
            'adapter stands behind one module outside of loops, write its path'
        )
    site = found[0]
    if inverse is not None:
        other = model.sites.modules.get(inverse)
        if other is None or other.features != site.features or other.stack:
            near = paths.nearby(inverse, model.sites.modules)
            raise TargetError(
                f'inverse {inverse!r} is no module of {site.features} features outside of '
                f'loops{near}'
            )
    return site


def _start(
    key: PRNGKeyArray, features: int, size: int, dtype: Any
) -> dict[str, Float[jax.Array, '...']]:
    half = features // 2
    leaves = {}
    for number, (name, inputs, outputs) in enumerate(
        (('f', features - half, half), ('g', half, features - half))
    ):
        down, up = jax.random.split(jax.random.fold_in(key, number))
        leaves[f'{name}_down'] = 0.02 * jax.random.normal(down, (inputs, size), dtype)
        leaves[f'{name}_down_bias'] = jnp.zeros(size, dtype)
        leaves[f'{name}_up'] = 0.02 * jax.random.normal(up, (size, outputs), dtype)
        leaves[f'{name}_up_bias'] = jnp.zeros(outputs, dtype)
    return leaves


def _apply(
    path: str,
    way: Callable[..., Any],
    function: Callable[[jax.Array], jax.Array],
    leaves: dict[str, Float[jax.Array, '...']],
    use: ModuleUse,
) -> Float[jax.Array, '... features']:
    x, half = use.output, leaves['f_up'].shape[-1]
    if half + leaves['g_up'].shape[-1] != x.shape[-1]:
        raise AdapterError(
            f"the adapter's 'f_up' and 'g_up' for module {path!r} are "
            f'{leaves["f_up"].shape} and {leaves["g_up"].shape}, but it returns {x.shape} '
            f'{x.dtype}. Was it made for another model?'
        )
    here = {name: leaf.astype(x.dtype) for name, leaf in leaves.items()}
    net = functools.partial(_net, function, here)
    return jnp.concatenate(way(net, x[..., :half], x[..., half:]), axis=-1)


def _forth(
    net: Callable[[str, jax.Array], jax.Array],
    x1: Float[jax.Array, '*T half'],
    x2: Float[jax.Array, '*T rest'],
) -> tuple[Float[jax.Array, '*T half'], Float[jax.Array, '*T rest']]:
    y1 = x1 + net('f', x2)
    return y1, x2 + net('g', y1)


def _back(
    net: Callable[[str, jax.Array], jax.Array],
    y1: Float[jax.Array, '*T half'],
    y2: Float[jax.Array, '*T rest'],
) -> tuple[Float[jax.Array, '*T half'], Float[jax.Array, '*T rest']]:
    x2 = y2 - net('g', y1)
    return y1 - net('f', x2), x2


def _net(
    function: Callable[[jax.Array], jax.Array],
    here: dict[str, Float[jax.Array, '...']],
    name: str,
    x: Float[jax.Array, '*T _'],
) -> Float[jax.Array, '*T _']:
    """`F` or `G` of the formula, by the first letter of its arrays."""
    inner = function(x @ here[f'{name}_down'] + lifted(here[f'{name}_down_bias'], x))
    return inner @ here[f'{name}_up'] + lifted(here[f'{name}_up_bias'], x)
