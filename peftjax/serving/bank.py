"""Banks: adapters of one transform, side by side in slots."""

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
from peftjax.serving.rows import Member, Prepared, prepare
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


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['adapters', 'own', 'lengths', 'filled', 'prepared'],
    meta_fields=['transform', 'shared'],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Bank:
    """Adapters of one base in the slots of one tree; slot 0 is the base without an adapter.

    A pytree. `put` changes a slot and compiles nothing. It holds the adapters, padded to the
    largest rank, and the arrays that they prepare from the weights.

    Attributes:
      adapters: the adapter of `transform`, with axes of slots in front.
      own: the methods' numbers that do not train, with slots in front unless shared.
      lengths: int32 [slots], the number of virtual tokens of each slot.
      filled: bool [slots]; slot 0 is not filled.
      prepared: arrays that depend only on weights (DoRA's norms, composed factors, the matrices of
        methods that form them). None to compute them in each call, so that gradients by `adapters`
        are complete and adapters may have dropout.
      transform: the method with the largest ranks of all.
      shared: for each leaf of `own` whether all adapters share it.
    """

    adapters: Any
    own: Any
    lengths: jax.Array
    filled: jax.Array
    prepared: Prepared | None
    transform: PeftTransform
    shared: tuple[bool, ...]

    @property
    def slots(self) -> int:
        """The number of slots, including the slot of the base."""
        return len(self.filled)

    def refusal(self, slot: int) -> str:
        """The reason why rows may not use that slot, or ''."""
        filled = np.asarray(self.filled)
        if slot == 0 or (0 < slot < self.slots and filled[slot]):
            return ''
        return (
            f'slot {slot} holds no adapter; those that do are {np.flatnonzero(filled).tolist()}, '
            'and 0 is the base'
        )

    def replace(self, **changes: Any) -> 'Bank':
        """A copy with some fields changed, for example `adapters` to differentiate by them.

        Raises:
          ValueError: other adapters in a bank that has prepared arrays for its own adapters.
        """
        stale = self.prepared is not None and 'prepared' not in changes
        if stale and changes.keys() & {'adapters', 'own'}:
            raise ValueError(
                'the bank holds arrays prepared from its adapters; with other adapters write '
                'prepared=None too, or use peftjax.serving.put'
            )
        return dataclasses.replace(self, **changes)

    def axes(self) -> Member:
        """The axes of slots of `members`."""
        own = jax.tree.unflatten(
            jax.tree.structure(self.own), [None if each else 0 for each in self.shared]
        )
        return Member(0, own, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType] (axes for arrays)

    def members(self, model: Model, params: Any) -> Member:
        """All adapters, with the arrays that they prepare from the weights."""
        made = self.prepared
        if made is None:
            one = functools.partial(prepare, model, self.transform, many_calls=False)
            made = jax.vmap(one, in_axes=(0, self.axes().own, 0, None))(
                self.adapters, self.own, self.filled, params
            )
        places = jnp.arange(self.slots, dtype=jnp.int32)
        return Member(self.adapters, self.own, self.lengths, self.filled, made, places)

    def __repr__(self) -> str:
        return f'Bank of {self.slots} slots of {self.transform!r}'


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
        made = put(model, made, frozen, slot, member)
    return made, frozen


def put(model: Model, bank: Bank, frozen: Frozen, slot: int, member: Trained) -> Bank:
    """The bank with an adapter in a slot. The other slots keep their bits, and nothing compiles.

    Args:
      model: the base.
      bank, frozen: as `bank` gave them.
      slot: 1 or more; an adapter that was there is dropped.
      member: `(transform, adapter, frozen)`, with ranks that fit into the bank.

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
    small = [
        np.asarray(leaf)
        for leaf, same in zip(jax.tree.leaves(own), bank.shared, strict=True)
        if not same
    ]
    return _placed(
        model.replace(params=None),
        bank,
        frozen.params,
        np.int32(slot),
        adapter,
        small,
        np.int32(length),
    )


@jax.jit
def _placed(
    model: Model, bank: Bank, params: Any, slot: Any, adapter: Any, small: Any, length: Any
) -> Bank:
    """The bank with everything of one adapter at a slot."""
    rest = iter(small)
    leaves = [
        leaf if same else leaf.at[slot].set(next(rest))
        for leaf, same in zip(jax.tree.leaves(bank.own), bank.shared, strict=True)
    ]
    own = jax.tree.unflatten(jax.tree.structure(bank.own), leaves)

    def placed(many: Any, one: Any) -> Any:
        return jax.tree.map(lambda leaf, value: leaf.at[slot].set(value), many, one)

    prepared = bank.prepared
    if prepared is not None:
        mine = _of_slot(own, slot, bank.shared)
        made = prepare(
            model, bank.transform, adapter, mine, jnp.bool_(True), params, many_calls=True
        )
        prepared = placed(prepared, made)
    return bank.replace(
        adapters=placed(bank.adapters, adapter),
        own=own,
        lengths=bank.lengths.at[slot].set(length),
        filled=bank.filled.at[slot].set(True),
        prepared=prepared,
    )


@functools.partial(jax.jit, static_argnums=1)
def _prepared(
    model: Model, transform: PeftTransform, adapter: Any, own: Any, active: Any, params: Any
) -> Prepared:
    return prepare(model, transform, adapter, own, active, params, many_calls=True)


def _repeated(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, axis=0), tree)


def _unless(shared: Sequence[bool], function: Any, tree: Any) -> Any:
    leaves = zip(jax.tree.leaves(tree), shared, strict=True)
    return jax.tree.unflatten(
        jax.tree.structure(tree), [leaf if same else function(leaf) for leaf, same in leaves]
    )


def _of_slot(own: Any, slot: Any, shared: Sequence[bool]) -> Any:
    return _unless(shared, lambda leaf: leaf[slot], own)
