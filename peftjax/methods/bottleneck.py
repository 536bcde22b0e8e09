"""Bottleneck adapters: a small trained network on the output of a module."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.base import (
    AdapterError,
    MergeError,
    Model,
    ModuleRule,
    ModuleUse,
    PeftTransform,
    check_entries,
)
from peftjax.core.sites import ModuleSite


def bottleneck(
    *,
    size: int,
    targets: paths.Targets,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    scale: float = 1.0,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Sequential bottleneck adapters: `h' = h + s (f(h D + d) U + u)`.

    `h: [..., features]` is the output of each targeted module, `D: [features, m]`,
    `U: [m, features]`. Placed on the sublayers' output projections this is Houlsby et al.'s
    adapter, before the residual: `targets=r'layers/(attention|ffn)/output'` on BERT. It costs
    `4 T features m` FLOPs a call forward.

    Args:
      size: `m`, the width of the bottleneck.
      targets: regular expressions, full match on module paths (`model.sites.modules`).
      activation: `f`.
      scale: `s`.
      dtype: of the trained arrays; the computation runs in the model's own.

    Returns:
      A transform whose adapter is `{module path: {'down': [*stack, features, m], 'down_bias',
      'up': [*stack, m, features], 'up_bias'}}`. It lives on activations: `merge` raises.

    Raises:
      ValueError: `size` below 1.
      TargetError: from `init`, if a pattern matches no module.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.bottleneck(size=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)['hidden']['down'].shape
    (8, 2)

    References:
      Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019 (arXiv:1902.00751),
      section 2.1. As there, weights start from a normal of deviation 1e-2 cut at two deviations
      and biases from zero: near the identity, not at it. The authors' code has 1e-3.
    """
    if size < 1:
        raise ValueError(f'size must be at least 1, got {size}')

    def init(key: jax.Array, model: Model) -> dict[str, dict[str, jax.Array]]:
        return {
            site.path: _init_site(paths.fold_in(key, site.path), site, size, dtype)
            for site in model.sites.match_modules(targets)
        }

    def merge(params: Any, adapter: dict[str, Any]) -> Any:
        del params
        _check_made_here(adapter)
        raise MergeError(
            f'bottleneck adapters are not linear in the weights and cannot merge: '
            f'{sorted(adapter)}; keep the adapter and use adapt(model, tx)'
        )

    def rules(adapter: dict[str, Any]) -> dict[str, ModuleRule]:
        _check_made_here(adapter)
        return {path: ModuleRule(leaves, at(path)) for path, leaves in adapter.items()}

    def at(path: str) -> Callable[[Any, ModuleUse], jax.Array]:
        def forward(leaves: dict[str, jax.Array], use: ModuleUse) -> jax.Array:
            _check_width(path, leaves['down'], use.output)
            return change(leaves, use)

        return forward

    def change(leaves: dict[str, jax.Array], use: ModuleUse) -> jax.Array:
        hidden = use.output.reshape(-1, use.output.shape[-1])
        here = {name: leaf.astype(hidden.dtype) for name, leaf in leaves.items()}
        inner = activation(hidden @ here['down'] + here['down_bias'])
        added = inner @ here['up'] + here['up_bias']
        return use.output + scale * added.reshape(use.output.shape)

    return PeftTransform(init, merge, rules)


def _check_made_here(adapter: Any) -> None:
    names = {'down', 'down_bias', 'up', 'up_bias'}
    check_entries(
        adapter,
        lambda entry: isinstance(entry, Mapping) and set(entry) == names,
        'bottleneck',
        "{'down', 'down_bias', 'up', 'up_bias'}",
    )


def _check_width(path: str, down: jax.Array, output: jax.Array) -> None:
    if down.ndim != 2 or down.shape[0] != output.shape[-1]:
        raise AdapterError(
            f"the adapter's 'down' for module {path!r} is {down.shape} {down.dtype}, but the "
            f'module returns {output.shape} {output.dtype}. Was it made for another model?'
        )


def _init_site(key: jax.Array, site: ModuleSite, size: int, dtype: Any) -> dict[str, jax.Array]:
    down_key, up_key = jax.random.split(key)
    draw = jax.nn.initializers.truncated_normal(1e-2, dtype, lower=-2.0, upper=2.0)
    stack, features = site.stack, site.features
    return {
        'down': draw(down_key, (*stack, features, size)),
        'down_bias': jnp.zeros((*stack, size), dtype),
        'up': draw(up_key, (*stack, size, features)),
        'up_bias': jnp.zeros((*stack, features), dtype),
    }
