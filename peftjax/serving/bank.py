"""Banks: adapters of one transform, side by side in slots."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.model import Model
from peftjax.core.transform import PeftTransform
from peftjax.serving.rows import Member, Prepared, prepare


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
