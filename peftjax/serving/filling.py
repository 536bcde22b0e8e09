"""Fills the slots of a bank."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.core.trained import Trained, parts
from peftjax.core.transform import PeftTransform
from peftjax.serving.bank import Bank
from peftjax.serving.rows import Prepared, prepare
from peftjax.serving.widths import (
    check_alike,
    check_params,
    check_shared,
    check_starts,
    like_own,
    virtual_tokens,
    widened,
    widest,
)

# Arrays of a method that are larger than this are stored once if all adapters share them.
_SMALL = 1024


def bank(
    model: Model,
    members: Sequence[Trained] = (),
    *,
    transform: PeftTransform | None = None,
    slots: int | None = None,
    dtype: Any = None,
    prepared: bool = True,
) -> tuple[Bank, Frozen]:
    """Puts adapters of one base side by side, for batches with an adapter for each row.

    Adapters of smaller ranks and shorter prompts are padded; they compute the same numbers.

    Args:
      model: the base, with real parameters.
      members: for slots 1, 2, ...: each a `(transform, adapter, frozen)`, or the result of
        `load_adapter` or `restore`. Their transforms may differ only in numbers and ranks.
      transform: with ranks at least as large as those of all members and of later adapters; by
        default the widest transform of the members.
      slots: the number of slots, including that of the base; by default one for each member.
      dtype: of the adapters' arrays; by default each array keeps its own.
      prepared: True if the bank stores the arrays that its adapters compute from the weights. Write
        False for a bank that trains.

    Returns:
      The bank and `frozen`: the base's parameters without the leaves that the adapters hold.

    Raises:
      ValueError: no member and no transform; transforms that differ in more than numbers and ranks;
        an adapter that does not fit; fewer slots than adapters.
      TypeError: a member is something else.

    >>> mlp, key = peftjax.testing.tiny_mlp(), jax.random.key(0)
    >>> methods = [peftjax.lora(rank=rank, targets=r'hidden') for rank in (1, 4)]
    >>> members = [(tx, *tx.init(key, mlp)) for tx in methods]
    >>> bank, frozen = peftjax.serving.bank(mlp, members, slots=8)
    >>> bank.slots, bank.adapters['hidden/kernel']['a'].shape
    (8, (8, 4, 4))
    """
    given = [parts(each) for each in members]
    if transform is None and not given:
        raise ValueError('a bank without members needs a transform; write transform=tx')
    tx = widest(model, [each[0] for each in given]) if transform is None else transform
    count = len(given) + 1 if slots is None else slots
    if count < len(given) + 1:
        raise ValueError(
            f'{slots} slots are too few for the base and {len(given)} adapters; write slots='
            f'{len(given) + 1} or more'
        )
    adapter, frozen = tx.init(jax.random.key(0), model)
    virtual_tokens(tx, adapter, frozen.own)  # or says that it cannot be of a bank
    if dtype is not None:
        adapter = jax.tree.map(lambda leaf: leaf.astype(dtype), adapter)
    shared = tuple(leaf.size > _SMALL for leaf in jax.tree.leaves(frozen.own))
    made = Bank(
        _repeated(adapter, count),
        _unless(shared, functools.partial(_repeated, count=count), frozen.own),
        jnp.zeros(count, jnp.int32),
        jnp.zeros(count, bool),
        None,
        tx,
        shared,
    )
    frozen = Frozen(frozen.params, ())
    if prepared:
        own, bare = _of_slot(made.own, 0, shared), model.replace(params=None)
        empty = _prepared(bare, tx, adapter, own, jnp.bool_(False), frozen.params)
        made = made.replace(prepared=_repeated(empty, count))
    for slot, member in enumerate(given, 1):
        made = put(model, made, frozen, slot, member, donate=True)
    return made, frozen


def put(
    model: Model,
    bank: Bank,
    frozen: Frozen,
    slot: int,
    member: Trained,
    *,
    donate: bool = False,
) -> Bank:
    """The bank with an adapter in a slot. The other slots keep their bits, and nothing compiles.

    Args:
      model: the base.
      bank, frozen: as `bank` gave them.
      slot: 1 or more; an adapter that was there is dropped.
      member: `(transform, adapter, frozen)`, with ranks that fit into the bank.
      donate: False copies the arrays that slots do not share, which takes time and memory in
        proportion to the slots. True gives them to the new bank, which writes into them where the
        backend can. Nothing else that shares them may be used afterwards: `bank`, its arrays, a
        copy by `Bank.replace`, or answers of `serving.server` that are still to come.

    Raises:
      ValueError: a slot that does not exist; an adapter of another method, or too large.
      TypeError: `member` is something else.

    >>> mlp, key = peftjax.testing.tiny_mlp(), jax.random.key(0)
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> bank, frozen = peftjax.serving.bank(mlp, transform=tx, slots=3)
    >>> bank = peftjax.serving.put(mlp, bank, frozen, 2, (tx, *tx.init(key, mlp)))
    >>> bank.filled.tolist()
    [False, False, True]
    """
    transform, adapter, beside = parts(member)
    if not 0 < slot < bank.slots:
        raise ValueError(
            f'slot {slot} is not one of the {bank.slots} of the bank; write 1 to {bank.slots - 1}, '
            'slot 0 is the base'
        )
    check_alike(bank.transform, transform)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), bank.adapters
    )
    check_starts(transform, adapter, shapes)
    check_params(frozen.params, beside.params)
    length = virtual_tokens(transform, adapter, beside.own)
    adapter = widened(transform, adapter, shapes)
    own = like_own(beside.own, _of_slot(bank.own, slice(0, 1), bank.shared))
    check_shared(own, bank.own, bank.shared)
    kept, by_slot = _apart(bank.own, bank.shared)
    mine = _apart(own, bank.shared)[1]
    # Arrays that slots share may be the model's own, and are never donated.
    arrays = dataclasses.replace(bank, own=None), by_slot
    if not donate:  # A copy is donated, so that both cases have one program.
        arrays = jax.device_put(arrays, may_alias=False)
    structure = jax.tree.structure(bank.own)
    placed, by_slot = _placed(
        *arrays,
        model.replace(params=None),
        frozen.params,
        np.int32(slot),
        adapter,
        [np.asarray(one, many.dtype) for one, many in zip(mine, by_slot, strict=True)],
        kept,
        np.int32(length),
        structure=structure,
    )
    return dataclasses.replace(placed, own=_joined(structure, bank.shared, kept, by_slot))


@functools.partial(jax.jit, static_argnames='structure', donate_argnames=('bank', 'by_slot'))
def _placed(
    bank: Bank,
    by_slot: list[Any],
    model: Model,
    params: Any,
    slot: Any,
    adapter: Any,
    mine: list[Any],
    kept: list[Any],
    length: Any,
    *,
    structure: Any,
) -> tuple[Bank, list[Any]]:
    """The bank and its `by_slot` with everything of one adapter at a slot.

    Args:
      bank: without its `own`.
      by_slot: the arrays of its `own` that slots do not share.
      model, params, slot, adapter, length: see `put`.
      mine: the adapter's numbers for `by_slot`.
      kept: the arrays of its `own` that slots share.
      structure: the tree structure of the whole `own`.
    """

    def placed(many: Any, one: Any) -> Any:
        return jax.tree.map(lambda leaf, value: leaf.at[slot].set(value), many, one)

    prepared = bank.prepared
    if prepared is not None:
        own = _joined(structure, bank.shared, kept, mine)
        made = prepare(
            model, bank.transform, adapter, own, jnp.bool_(True), params, many_calls=True
        )
        prepared = placed(prepared, made)
    bank = dataclasses.replace(
        bank,
        adapters=placed(bank.adapters, adapter),
        lengths=bank.lengths.at[slot].set(length),
        filled=bank.filled.at[slot].set(True),
        prepared=prepared,
    )
    return bank, placed(by_slot, mine)


def _apart(own: Any, shared: Sequence[bool]) -> tuple[list[Any], list[Any]]:
    """The leaves that slots share, and the others."""
    leaves = list(zip(jax.tree.leaves(own), shared, strict=True))
    return [leaf for leaf, same in leaves if same], [leaf for leaf, same in leaves if not same]


def _joined(structure: Any, shared: Sequence[bool], kept: list[Any], others: list[Any]) -> Any:
    """The tree whose leaves `_apart` took apart."""
    same, other = iter(kept), iter(others)
    return jax.tree.unflatten(structure, [next(same if each else other) for each in shared])


@functools.partial(jax.jit, static_argnums=1)
def _prepared(
    model: Model, transform: PeftTransform, adapter: Any, own: Any, active: Any, params: Any
) -> Prepared:
    return prepare(model, transform, adapter, own, active, params, many_calls=True)


def _repeated(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, axis=0), tree)


def _unless(shared: Sequence[bool], function: Any, tree: Any) -> Any:
    kept, others = _apart(tree, shared)
    return _joined(jax.tree.structure(tree), shared, kept, [function(leaf) for leaf in others])


def _of_slot(own: Any, slot: Any, shared: Sequence[bool]) -> Any:
    return _unless(shared, lambda leaf: leaf[slot], own)
