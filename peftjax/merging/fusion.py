"""AdapterFusion: trained attention over the changes that several frozen adapters propose."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries
from peftjax.core.model import Model
from peftjax.core.rules import ModuleRule
from peftjax.core.trained import Trained, parts
from peftjax.core.transform import PeftTransform
from peftjax.core.use import ModuleUse


class _Attention(TypedDict):
    query: Float[jax.Array, 'width width']
    key: Float[jax.Array, 'width width']
    value: Float[jax.Array, 'width width']


def adapter_fusion(members: Sequence[Trained], *, dtype: Any = jnp.float32) -> PeftTransform:
    r"""Attention over adapters: each token mixes what every adapter would add at a module.

    `h' = h + sum_i s_i z_i V` with `s = softmax_i (h Q) . (z_i K)`, where `h` is the module's
    output and `z_i` what adapter `i` adds to it. `Q`, `K`, `V: [width, width]` train at each
    module, `3 width^2` numbers; the adapters are in `frozen.own`. `Q` and `K` start from a normal
    of deviation 0.02 and `V` from the identity, which gives about the mean of the adapters. With N
    tokens and T adapters, the forward pass takes `2 N (T + 2) width^2` more FLOPs than all adapters
    alone. It cannot be merged.

    Args:
      members: adapters of methods on modules, such as bottlenecks of any size. Each is
        `(transform, adapter, frozen)`, or what `load_adapter` or `restore` returns. They may act on
        different modules.
      dtype: of the trained arrays.

    Returns:
      A transform whose adapter is `{module path: {'query', 'key', 'value': [*stack, width,
      width]}}`.

    Raises:
      ValueError: no members; from `init`, a method that does not act on modules.
      TypeError: a member is something else.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.bottleneck(size=2, targets=r'hidden')
    >>> members = [(tx, *tx.init(jax.random.key(i), mlp)) for i in (0, 1)]
    >>> fused = peftjax.merging.adapter_fusion(members)
    >>> fused.init(jax.random.key(2), mlp)[0]['hidden']['query'].shape
    (8, 8)

    References:
      Pfeiffer et al., AdapterFusion, 2020 (arXiv:2005.00247). The formula and the starts are those
      of AdapterHub's code, which adds biases to `Q` and `K`, and dropout on the scores.
    """
    known = [parts(each) for each in members]
    if not known:
        raise ValueError('members is empty; write (transform, adapter, frozen) of each adapter')
    transforms = [transform for transform, _, _ in known]

    def numbers() -> dict[str, Any]:
        return {
            'adapters': tuple(adapter for _, adapter, _ in known),
            'own': tuple(frozen.own for _, _, frozen in known),
        }

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Entry]:
        adapter = {}
        for path in _experts(transforms, numbers()):
            site = model.sites.modules[path]
            shape = (*site.stack, site.features, site.features)
            query, keys = jax.random.split(paths.fold_in(key, path))
            arrays = {
                'query': 0.02 * jax.random.normal(query, shape, dtype),
                'key': 0.02 * jax.random.normal(keys, shape, dtype),
                'value': jnp.broadcast_to(jnp.eye(site.features, dtype=dtype), shape),
            }
            adapter[path] = Entry('adapter_fusion', arrays)
        return adapter

    def own(model: Model) -> Any:
        del model
        return numbers()

    def rules(adapter: dict[str, Entry], own: Any) -> dict[str, ModuleRule]:
        check_entries(adapter, 'adapter_fusion', ('query', 'key', 'value'))
        experts = _experts(transforms, own)
        return {path: _fused(entry, experts[path]) for path, entry in adapter.items()}

    return PeftTransform(start, rules, own)


def _experts(
    transforms: Sequence[PeftTransform], own: Mapping[str, Any]
) -> dict[str, list[ModuleRule]]:
    """The rules of all adapters at each module."""
    found: dict[str, list[ModuleRule]] = {}
    for transform, adapter, numbers in zip(transforms, own['adapters'], own['own'], strict=True):
        for path, rule in transform.rules(adapter, numbers).items():
            if not isinstance(rule, ModuleRule):
                raise ValueError(
                    f'adapter_fusion takes methods on modules, but {transform!r} acts on {path!r} '
                    'in another way; merge the deltas, or mix them with peftjax.merging.x_lora'
                )
            found.setdefault(path, []).append(rule)
    return found


def _fused(entry: Entry, experts: Sequence[ModuleRule]) -> ModuleRule:
    def apply(leaves: Any, use: ModuleUse) -> Float[jax.Array, '...']:
        fusion, each = leaves
        output = use.output
        changes = jnp.stack(
            [rule.apply(mine, use) - output for rule, mine in zip(experts, each, strict=True)], -2
        )
        return output + _mixed(fusion, output, changes)

    def prepare(leaves: Any, params: Mapping[str, Any]) -> Any:
        fusion, each = leaves
        made = [
            mine if rule.prepare is None else rule.prepare(mine, params)
            for rule, mine in zip(experts, each, strict=True)
        ]
        return fusion, tuple(made)

    prepared = any(rule.prepare is not None for rule in experts)
    leaves = dict(entry), tuple(rule.leaves for rule in experts)
    whole = any(rule.whole for rule in experts)
    return ModuleRule(leaves, apply, prepare if prepared else None, whole)


def _mixed(
    fusion: _Attention,
    output: Float[jax.Array, '*tokens width'],
    changes: Float[jax.Array, '*tokens members width'],
) -> Float[jax.Array, '*tokens width']:
    query, key, value = (fusion[name].astype(output.dtype) for name in ('query', 'key', 'value'))
    scores = ((output @ query)[..., None, :] * (changes @ key)).sum(-1)
    shares = jax.nn.softmax(scores.astype(jnp.float32), -1).astype(output.dtype)
    # The mean comes first, so that there is one product by V and not one for each adapter.
    return (shares[..., None] * changes).sum(-2) @ value
