"""Rules: what a method does at one site, one kind of rule for each kind of site."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from peftjax.core.layout import Layout
from peftjax.core.use import ModelCall, ModuleUse, Use


@dataclasses.dataclass(frozen=True)
class LeafRule:
    """Puts another array in the place of a leaf, before anything uses it.

    Attributes:
      replace: `replace(leaf)` gives an array of the leaf's shape; the dtype is brought back.
      keeps: what of the leaf is left in the result. With `'all'` the result is a change of the
        leaf. With `'part'` some entries are the leaf's own. With `'nothing'` the rule ignores the
        leaf, which has moved into the adapter: `replace` is given a `Hole`.
    """

    replace: Callable[[Any], jax.Array]
    keeps: Literal['all', 'part', 'nothing'] = 'all'


@dataclasses.dataclass(frozen=True)
class MatrixRule:
    """Acts at every use of a leaf that reads as a stack of matrices.

    Attributes:
      leaves: its arrays, stack axes in front.
      layout: of the leaf.
      apply: `apply(leaves, use)` gives the result of the use.
      merge: `merge(leaves, matrix)` gives the matrix in force; None if the rule cannot be expressed
        as a matrix. Such a rule must be the last one on its leaf in a chain.
      prepare: `prepare(leaves, matrix)` gives the leaves that `apply` sees, once for each call
        of the model and outside of its loops: for what depends on the weights alone. `merge`
        must take them as well. None for `leaves` as they are.
      before: what replaces the leaf first.
      whole: it reads whole examples, so that text cannot be generated from a cache.
      reads_ids: it reads the ids of tokens, among which virtual ones would stand as id 0.
      dense: `apply` forms an array of the matrix's size, so that many calls with one adapter are
        cheaper with the merged matrix.
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
      whole: it reads whole examples, so that text cannot be generated from a cache.
      shorten: see `CallRule`.
      only_virtual: with `shorten(0)` it does nothing.
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
      virtual_tokens: how many positions it adds to the sequence; one method of a chain may.
      keeps_virtual: it leaves them in the outputs.
      shorten: `shorten(length)` gives the rule that has the last `length` (int32 [], may be
        traced) of its virtual tokens alone; the others keep their places and are masked. None of a
        rule without virtual tokens.
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
    """What replaces the leaf at the path of `rule`, if anything does."""
    if isinstance(rule, MatrixRule):
        return rule.before
    return rule if isinstance(rule, LeafRule) else None
