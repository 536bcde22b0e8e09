"""One row of a mixed batch: the model with the adapter of that row."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from peftjax.binding import calls
from peftjax.binding.adapt import evaluate_precomputed
from peftjax.binding.precompute import precompute
from peftjax.core import paths
from peftjax.core.holes import is_hole
from peftjax.core.model import Model
from peftjax.core.quantized import dense
from peftjax.core.rules import LeafRule, MatrixRule, ModuleRule, Rule, leaf_rule
from peftjax.core.transform import PeftTransform
from peftjax.serving.row_rules import Blocks, in_blocks, read_inside, ready, stack_of, switched


class Source(NamedTuple):
    """The source of the leaves of a rule.

    Attributes:
      structure: of the leaves.
      given: for each leaf the index of the same array in `(adapter, own)`; None for a computed
        array.
    """

    structure: Any
    given: tuple[int | None, ...]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['leaves', 'made'], meta_fields=['sources']
)
@dataclasses.dataclass(frozen=True)
class Prepared:
    """The arrays that an adapter computes from the weights and from itself, once for many calls.

    Attributes:
      leaves: the model's leaves that the adapter replaces, by path.
      made: computed arrays that rules see, by path.
      sources: `(path, source)` of each rule.
    """

    leaves: dict[str, Any]
    made: dict[str, tuple[Any, ...]]
    sources: tuple[tuple[str, Source], ...]

    def seen(self, adapter: Any, own: Any) -> dict[str, Any]:
        """The arrays that each rule sees as its leaves, by path."""
        given, found = jax.tree.leaves((adapter, own)), {}
        for path, source in self.sources:
            made = iter(self.made[path])
            leaves = [next(made) if number is None else given[number] for number in source.given]
            found[path] = jax.tree.unflatten(source.structure, leaves)
        return found


class Member(NamedTuple):
    """One adapter of a bank, or the adapters of several rows, with the rows in front.

    Attributes:
      adapter: with the shapes that `init` of the bank's transform gives.
      own: its numbers that do not train.
      length: int32 [], of its virtual tokens.
      active: bool []; if False, the model computes the same as without an adapter.
      prepared: see `prepare`.
      slot: int32 [], its slot in the bank.
    """

    adapter: Any
    own: Any
    length: jax.Array
    active: jax.Array
    prepared: Prepared
    slot: jax.Array


def prepare(
    model: Model,
    transform: PeftTransform,
    adapter: Any,
    own: Any,
    active: Any,
    params: Any,
    *,
    many_calls: bool,
) -> Prepared:
    """The arrays that depend on one adapter and on the weights, but not on inputs.

    many_calls: see `precompute`.
    """
    rules = dict(transform.rules(adapter, own))
    for path, rule in rules.items():
        if isinstance(rule, MatrixRule) and rule.dense and transform.rest is None:
            rules[path] = dataclasses.replace(rule, merge=_switched_merge(rule, active))
    ready, left = precompute(model, rules, params, many_calls=many_calls)
    before, after = paths.slots(params), paths.slots(left)
    leaves = {
        path: _chosen(active, after[path], before[path])
        for path, rule in rules.items()
        if leaf_rule(rule) is not None
    }
    numbers = {id(leaf): number for number, leaf in enumerate(jax.tree.leaves((adapter, own)))}
    made, sources = {}, []
    for path, rule in ready.items():
        if not isinstance(rule, MatrixRule | ModuleRule):
            continue
        seen, structure = jax.tree.flatten(rule.leaves)
        given = tuple(numbers.get(id(leaf)) for leaf in seen)
        made[path] = tuple(leaf for leaf, number in zip(seen, given, strict=True) if number is None)
        sources.append((path, Source(structure, given)))
    return Prepared(leaves, made, tuple(sources))


def _switched_merge(rule: MatrixRule, active: Any) -> Callable[[Any, jax.Array], jax.Array]:
    merge = rule.merge
    assert merge is not None
    return lambda leaves, matrix: jnp.where(active, merge(leaves, matrix), matrix)


def _chosen(active: Any, replaced: jax.Array, leaf: Any) -> jax.Array:
    # A leaf that moved into the adapter is in that of the empty slot too.
    return replaced if is_hole(leaf) else jnp.where(active, replaced, dense(leaf))


class Method(NamedTuple):
    """The part of the method that all rows of a batch share.

    Attributes:
      model: its parameters are not read.
      transform: of the bank.
      many_calls: the argument of `prepare`.
      axes: those of rows in `Member`; None for numbers that all adapters share.
      bank: all slots, with slots in front, for rules that read their slot at each use. None if the
        arrays of the rows are read: with many calls, and for gradients, which would otherwise have
        the size of the bank in each iteration of a loop.
      blocks: how each row is cut, if each block has an adapter; None if each row has one adapter.
    """

    model: Model
    transform: PeftTransform
    many_calls: bool
    axes: Member
    bank: Member | None = None
    blocks: Blocks | None = None


def evaluate_row(method: Method, member: Member, params: Any, key: Any, call: calls.Call) -> Any:
    """The model's outputs with the rules of one adapter in force, or of one for each block."""
    rules = (_rules if method.blocks is None else _rules_of_blocks)(method, member)
    params = paths.replace(params, member.prepared.leaves)
    return evaluate_precomputed(method.model, rules, params, key, call)


def _rules(method: Method, member: Member) -> dict[str, Rule]:
    transform, bank = method.transform, method.bank
    seen = member.prepared.seen(member.adapter, member.own)
    every = None if bank is None else bank.prepared.seen(bank.adapter, bank.own)
    rules: dict[str, Rule] = {}
    for path, rule in transform.rules(member.adapter, member.own).items():
        if isinstance(rule, LeafRule):
            continue
        merged = method.many_calls and isinstance(rule, MatrixRule) and rule.dense
        rule = ready(rule, merged, seen.get(path), member.length)
        stack = stack_of(method.model, path, rule)
        if every is not None and isinstance(rule, MatrixRule | ModuleRule) and stack:
            rule = read_inside(rule, every[path], member.slot, stack)
        keep = merged or transform.rest is not None
        rules[path] = rule if keep else switched(rule, member.active)
    return rules


def _rules_of_blocks(method: Method, members: Member) -> dict[str, Rule]:
    """Rules of a row whose blocks have an adapter each; `members` has an axis of blocks."""
    assert method.blocks is not None
    if members.prepared.leaves:
        raise ValueError(
            f'the method replaces {next(iter(members.prepared.leaves))!r}, which all tokens of a '
            'row share; write one slot for each row, and pack no rows'
        )
    first = jax.tree.map(_first_block, method.axes, members, is_leaf=lambda axis: axis is None)
    leaves = members.prepared.seen(members.adapter, members.own)
    rules = _rules(method, first._replace(slot=members.slot))
    for path, rule in rules.items():
        axes: Any = None, 0  # What blocks share, and where the leaves of each are in the bank.
        inside = method.bank is not None and stack_of(method.model, path, rule)
        if isinstance(rule, MatrixRule) and not inside:
            axes = jax.tree.map(_block_axis, leaves[path], rule.leaves)
            rule = dataclasses.replace(rule, leaves=leaves[path])

        def of_member(member: Member, path: str = path) -> Any:
            # A rule closes over numbers, so that each block needs the rule of its own adapter.
            return _rules(method, member)[path]

        rules[path] = in_blocks(path, rule, of_member, members, (method.axes, axes), method.blocks)
    return rules


def _first_block(axis: int | None, leaf: jax.Array) -> jax.Array:
    return leaf if axis is None else jax.lax.index_in_dim(leaf, 0, axis, keepdims=False)


def _block_axis(leaf: jax.Array, of_one: jax.Array) -> int | None:
    return None if leaf.ndim == of_one.ndim else 0


# In place of an axis: an array that all rows share. None would be an empty tree in trees of axes.
SHARED = -1


class Axes(NamedTuple):
    """The axes of rows in the arrays of a call and in its results.

    Attributes:
      arrays: for each array of the call its axis of rows, or `SHARED`.
      results: the same of the results, a tree.
      own_cache: those of `arrays`, by number, that have an axis of rows in front although the
        model's own have none: the length of a cache, where each row has a cache of its own. The
        results then have one in front too.
    """

    arrays: Sequence[int]
    results: Any
    own_cache: frozenset[int] | None = None


def mapped(
    method: Method, members: Member, params: Any, keys: Any, call: calls.Call, axes: Axes
) -> Any:
    """The model on a batch with an adapter for each row: `jax.vmap` of `evaluate_row`.

    Args:
      method: of the bank.
      members: the adapters of all rows.
      params: of the base, which all rows share.
      keys: of the adapters' own noise, one for each row; or None.
      call: of the whole batch.
      axes: of the arrays of the call and of its results.
    """
    lifted = axes.own_cache

    def row(member: Member, key: Any, arrays: Sequence[Any]) -> Any:
        whole = tuple(
            each if axis == SHARED else jnp.expand_dims(each, axis)
            for each, axis in zip(arrays, axes.arrays, strict=True)
        )
        one = calls.Call(whole, call.structure)
        made = evaluate_row(method, member, params, key, one)
        return jax.tree.map(
            lambda axis, leaf: leaf if axis == SHARED else jnp.squeeze(leaf, axis),
            axes.results,
            made,
        )

    def vmap_axis(axis: int, added: bool) -> int | None:
        if axis != SHARED:
            return axis
        return 0 if added else None

    inside = tuple(
        vmap_axis(axis, number in (lifted or ())) for number, axis in enumerate(axes.arrays)
    )
    found, structure = jax.tree.flatten(axes.results)
    results = [vmap_axis(axis, lifted is not None) for axis in found]
    in_axes = method.axes, None if keys is None else 0, inside
    out_axes = jax.tree.unflatten(structure, results)
    return jax.vmap(row, in_axes=in_axes, out_axes=out_axes)(members, keys, call.arrays)


def row_axes(function: Callable[[int], Any]) -> Any:
    """The axis of rows of each result of `function(rows)`, or `SHARED`.

    Args:
      function: gives the shapes of the results for a batch of that many rows.

    Raises:
      ValueError: a result is of the whole batch and has no axis of rows.
    """
    shapes, others = function(2), function(3)

    def axis(path: Any, one: Any, other: Any) -> int:
        found = [
            i
            for i, sizes in enumerate(zip(one.shape, other.shape, strict=True))
            if len({*sizes}) > 1
        ]
        if len(found) > 1:
            raise ValueError(
                f'the result {jax.tree_util.keystr(path)} of the model is {list(one.shape)} for 2 '
                f'rows and {list(other.shape)} for 3: it mixes rows, which may have different '
                'adapters'
            )
        return found[0] if found else SHARED

    return jax.tree_util.tree_map_with_path(axis, shapes, others)
