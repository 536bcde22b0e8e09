"""Rules: what a method does at one site, one kind of rule for each kind of site."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from peftjax.core.layout import Layout
from peftjax.core.use import ModelCall, ModuleUse, Use


@dataclasses.dataclass(frozen=True)
class LeafRule:
    """Replaces a leaf by another array before the model uses it.

    Attributes:
      replace: `replace(leaf)` gives an array of the leaf's shape; it is cast to the leaf's dtype.
      keeps: how much of the leaf is left in the result. With `'all'` the result is a change of the
        leaf. With `'part'` some entries are the leaf's own. With `'nothing'` the rule ignores the
        leaf, which has moved into the adapter: `replace` is given a `Hole`.
    """

    replace: Callable[[Any], jax.Array]
    keeps: Literal['all', 'part', 'nothing'] = 'all'


@dataclasses.dataclass(frozen=True)
class MatrixRule:
    """Acts at every use of a leaf that is read as a stack of matrices.

    Attributes:
      leaves: its arrays, stack axes in front.
      layout: of the leaf.
      apply: `apply(leaves, use)` gives the result of the use.
      merge: `merge(leaves, matrix)` gives the matrix in force; None if the rule cannot be expressed
        as a matrix. Such a rule must be the last one on its leaf in a chain.
      prepare: `prepare(leaves, matrix)` gives the leaves that `apply` sees. It runs once for each
        call of the model, outside its loops, for values that depend only on the weights. `merge`
        must accept these leaves too. None if `apply` takes `leaves` unchanged.
      before: what replaces the leaf first.
      whole: True if the rule reads whole examples, so that text cannot be generated with a cache.
      reads_ids: True if the rule reads token ids. A virtual token would have id 0 there.
      dense: True if `apply` forms an array of the matrix's size. Many calls with one adapter are
        then cheaper with the merged matrix.
    """

    leaves: Any
    layout: Layout
    apply: Callable[[Any, Use], jax.Array]
    merge: Callable[[Any, jax.Array], jax.Array] | None
    prepare: Callable[[Any, jax.Array], Any] | None = None
    before: LeafRule | None = None
    whole: bool = False
    dense: bool = False
    reads_ids: bool = False


@dataclasses.dataclass(frozen=True)
class ModuleRule:
    """Acts at every call of one module.

    Attributes:
      leaves: its arrays, stack axes in front.
      apply: `apply(leaves, use)` gives the output in force.
      prepare: `prepare(leaves, params)` gives the leaves that `apply` sees, from the model's own
        `{leaf path: array}`, once for each call of the model and outside of its loops; or None.
      whole: True if the rule reads whole examples, so that text cannot be generated with a cache.
      shorten: see `CallRule`.
      only_virtual: True if the rule does nothing after `shorten(0)`.
    """

    leaves: Any
    apply: Callable[[Any, ModuleUse], jax.Array]
    prepare: Callable[[Any, Mapping[str, Any]], Any] | None = None
    whole: bool = False
    shorten: Callable[[jax.Array], 'ModuleRule'] | None = None
    only_virtual: bool = False


@dataclasses.dataclass(frozen=True)
class CallRule:
    """Acts at every call of the whole model; its path is `ROOT`.

    Attributes:
      leaves: its arrays.
      apply: `apply(leaves, call)` gives the result in force.
      virtual_tokens: how many positions it adds to the sequence. Only one method of a chain may add
        some.
      keeps_virtual: True if these positions stay in the outputs.
      shorten: `shorten(length)` gives the rule with only the last `length` of its virtual tokens
        (int32 [], may be traced). The others keep their places and are masked. None for a rule
        without virtual tokens.
    """

    leaves: Any
    apply: Callable[[Any, ModelCall], Any]
    virtual_tokens: int = 0
    keeps_virtual: bool = False
    shorten: Callable[[jax.Array], 'CallRule'] | None = None


ROOT = ''
"""The path of the whole model among the paths of rules."""

Rule = LeafRule | MatrixRule | ModuleRule | CallRule
Rules = Mapping[str, Rule]


def leaf_rule(rule: Rule | None) -> LeafRule | None:
    """The rule that replaces the leaf before `rule` acts, if there is one."""
    if isinstance(rule, MatrixRule):
        return rule.before
    return rule if isinstance(rule, LeafRule) else None
