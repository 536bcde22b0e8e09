"""Precomputes the values that depend only on the weights, once before many calls of a model."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.errors import AdapterError
from peftjax.core.holes import is_hole
from peftjax.core.merge import check_leaf, over_stack, replaced
from peftjax.core.model import Model
from peftjax.core.quantized import dense, is_quantized
from peftjax.core.rules import CallRule, MatrixRule, ModuleRule, Rule, leaf_rule
from peftjax.core.sites import Sites
from peftjax.core.use import Use


def precompute(
    model: Model, rules: Mapping[str, Rule], params: Any, *, many_calls: bool = False
) -> tuple[dict[str, Rule], Any]:
    """Precomputes everything that depends only on the weights; returns updated rules and params.

    It replaces the leaves that a rule replaces, and calls the `prepare` of each rule. Each of many
    calls, as in decoding, then computes only what depends on its tokens.

    many_calls: merge the rules that form matrices into their weights once, instead of in every
        call; such rules draw no dropout then.
    """
    leaves = paths.slots(params)
    _check(rules, leaves, model.sites)
    found = dict(rules)
    for path, rule in rules.items():
        before = leaf_rule(rule)
        if before is None:
            continue
        leaves[path] = replaced(before, dense(leaves[path]))
        if isinstance(rule, MatrixRule):
            found[path] = dataclasses.replace(rule, before=None)
        else:
            del found[path]
    if left := [path for path, leaf in leaves.items() if is_hole(leaf)]:
        raise AdapterError(
            f'frozen.params has {leaves[left[0]]!r} at {left[0]!r}, but this adapter does not hold '
            'the leaf; pass the frozen that init returned with this adapter'
        )
    for path, rule in found.items():
        if many_calls and isinstance(rule, MatrixRule) and rule.dense:
            found[path] = by_matrix(rule, _matrices(rule, leaves[path]))
            continue
        if isinstance(rule, MatrixRule) and rule.prepare is not None:
            leaves_of_rule = _prepared(rule, leaves[path])
        elif isinstance(rule, ModuleRule) and rule.prepare is not None:
            leaves_of_rule = rule.prepare(rule.leaves, _Dense(leaves))
        else:
            continue
        found[path] = dataclasses.replace(rule, leaves=leaves_of_rule, prepare=None)
    return found, paths.replace(params, leaves)


class _Dense(Mapping[str, Any]):
    """Leaves by path, each dequantised when it is asked for."""

    def __init__(self, leaves: Mapping[str, Any]):
        self._leaves = leaves

    def __getitem__(self, path: str) -> Any:
        return dense(self._leaves[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)


def by_matrix(rule: MatrixRule, matrices: Mapping[str, jax.Array]) -> MatrixRule:
    """An equal rule with the leaves `{'matrix': [*stack, in, out]}`, the merged matrices."""
    return MatrixRule(matrices, rule.layout, _by_product, None, whole=rule.whole)


def _matrices(rule: MatrixRule, leaf: Any) -> dict[str, jax.Array]:
    merge = rule.merge
    assert merge is not None

    def formed(leaves: Any, matrix: jax.Array) -> dict[str, jax.Array]:
        return {'matrix': merge(leaves, matrix)}

    return _prepared(dataclasses.replace(rule, prepare=formed), leaf)


def _by_product(leaves: Mapping[str, jax.Array], use: Use) -> jax.Array:
    return use.product(use.x, leaves['matrix'])


def _prepared(rule: MatrixRule, leaf: Any) -> Any:
    """The leaves as a rule sees them. A quantised weight is read one matrix at a time."""
    layout, prepare = rule.layout, rule.prepare
    assert prepare is not None
    if not is_quantized(leaf):
        return over_stack(prepare, layout)(rule.leaves, layout.to_matrix(leaf))

    @jax.checkpoint
    def one(part: Any) -> Any:
        leaves, quantized = part
        return prepare(leaves, quantized.matrix.to_matrix(quantized.dequantize()))

    for _ in layout.stack:
        one = functools.partial(jax.lax.map, one)
    return one((rule.leaves, leaf))


def _check(rules: Mapping[str, Rule], leaves: dict[str, Any], sites: Sites) -> None:
    for path, rule in rules.items():
        if isinstance(rule, CallRule):
            continue
        if not isinstance(rule, ModuleRule):
            check_leaf(path, rule, leaves)
        elif path not in sites.modules:
            raise AdapterError(
                f'the adapter acts on {path!r}, which this model lacks'
                f'{paths.nearby(path, sites.modules)}. Was it made for another model?'
            )
        if isinstance(rule, MatrixRule) and rule.layout != sites.weights[path].layout:
            raise AdapterError(
                f'the adapter was made for a model that uses {path!r} as '
                f'{rule.layout}; this one uses it as '
                f'{sites.weights[path].layout}. Was it made for another model, or one '
                'wrapped with other example inputs?'
            )
