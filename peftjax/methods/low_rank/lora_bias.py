"""The bias of LoRA's low-rank branch: `y = x W + b + s (x A B + c)`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Inexact, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.rules import LeafRule, MatrixRule, Rule
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform

NAME = 'lora_with_bias'
"""The method name of the entries, so that code for plain LoRA does not accept them."""

Start = Callable[[PRNGKeyArray, Any, WeightSite], Mapping[str, Any]]


def beside(factors: Start, dtype: Any) -> Start:
    """`factors`, and a bias of zeros: 'bias' where the module has one, 'shift' where it has none.

    Rules do not see the model, so the name says which of the two it is.
    """

    def start(
        key: PRNGKeyArray, matrix: Inexact[jax.Array, 'in out'], site: WeightSite
    ) -> Mapping[str, Any]:
        if 'lookup' in site.uses:
            raise ValueError(
                f'{site.path!r} is an embedding, whose rows have no bias; leave it out of the '
                'targets of lora(bias=True)'
            )
        name = 'bias' if site.bias == _bias_of(site.path) else 'shift'
        return {**factors(key, matrix, site), name: jnp.zeros((matrix.shape[1],), dtype)}

    return start


def shifted(leaves: Any, y: Inexact[jax.Array, '...']) -> Inexact[jax.Array, '...']:
    """The result of a use, plus the scaled bias of the branch if the module has no bias."""
    if 'shift' not in leaves:
        return y
    return y + (leaves['scale'] * leaves['shift'])[None].astype(y.dtype)


def in_force(transform: PeftTransform) -> PeftTransform:
    """`transform`, whose rules add the scaled biases as well."""

    def rules(adapter: Adapter, own: Any) -> dict[str, Rule]:
        found = dict(transform.rules(adapter, own))
        for path, entry in adapter.items():
            if 'bias' in entry:
                found[_bias_of(path)] = _on_the_bias(entry, own[path]['scale'])
            else:
                rule = found[path]
                assert isinstance(rule, MatrixRule)
                # The module has no bias into which this one could be merged.
                found[path] = dataclasses.replace(rule, merge=None)
        return found

    return transform.replace(rules=rules)


def _bias_of(path: str) -> str:
    return f'{paths.parent(path)}/bias'.removeprefix('/')


def _on_the_bias(entry: Any, scale: Any) -> LeafRule:
    def replace(bias: Inexact[jax.Array, '*shape']) -> Inexact[jax.Array, '*shape']:
        each = scale.astype(entry['bias'].dtype)
        added = entry['bias'] * (each[..., None] if each.ndim else each)
        wide = jnp.promote_types(bias.dtype, added.dtype)
        return bias.astype(wide) + added.reshape(bias.shape).astype(wide)

    return LeafRule(replace)
