"""The numbers that do not train, and checks of the arguments passed beside them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from peftjax.core import readable
from peftjax.core.entries import found_in, holds_entries
from peftjax.core.model import Model


class Frozen(NamedTuple):
    """Everything that does not train, as `init` gives it beside the adapter. A pytree.

    Attributes:
      params: the model's parameters. A leaf that moved into the adapter is a `Hole`. Of a leaf that
        a method moved in part (PiSSA, LoftQ), the rest is here.
      own: the method's own numbers: scales, rates of dropout, random projections, positions.
    """

    params: Any
    own: Any

    def __repr__(self) -> str:
        half = readable.MOST_LINES // 2 - 2
        lines = []
        for name in self._fields:
            lines += [name, *(f'  {line}' for line in readable.outline(getattr(self, name), half))]
        return readable.under('Frozen', lines)


def check_init(key: Any, model: Any) -> None:
    """Raises `TypeError` unless these are the arguments of `init`."""
    if isinstance(model, Model) and not isinstance(key, Model | int):
        return
    if isinstance(key, Model):
        raise TypeError('the arguments are swapped: write tx.init(key, model), the key first')
    if isinstance(key, int):
        raise TypeError(f'key is the number {key}; write tx.init(jax.random.key({key}), model)')
    raise TypeError(
        f'model is a {type(model).__name__}; write tx.init(key, model) with a model of '
        'peftjax.load or peftjax.wrap'
    )


def check_freeze(model: Any, adapter: Any) -> None:
    """Raises `TypeError` unless these may be the arguments of `freeze`."""
    check_adapter(adapter)
    if isinstance(model, Model) and not isinstance(adapter, Model):
        return
    if isinstance(adapter, Model):
        raise TypeError('the arguments are swapped: write tx.freeze(model, adapter)')
    raise TypeError(
        f'model is a {type(model).__name__}; write tx.freeze(model, adapter) with a model of '
        'peftjax.load or peftjax.wrap'
    )


def check_adapter(adapter: Any) -> None:
    """Raises `TypeError` if the adapter is the whole pair that `init` returns."""
    if isinstance(adapter, tuple) and len(adapter) == 2 and isinstance(adapter[1], Frozen):
        raise TypeError(
            'the adapter is the whole pair that init returns; write '
            'adapter, frozen = tx.init(key, model)'
        )


def check_frozen(adapter: Any, frozen: Any) -> None:
    """Raises `TypeError` unless `frozen` is the second result of `init`."""
    check_adapter(adapter)
    if isinstance(frozen, Frozen) and not isinstance(adapter, Frozen):
        return
    if isinstance(adapter, Frozen):
        raise TypeError('the arguments are swapped: the adapter comes first, then frozen')
    if frozen is None:
        given = 'missing'
    elif isinstance(frozen, Model):
        given = 'the model'
    elif isinstance(frozen, Mapping) and not holds_entries(frozen):
        given = 'a tree of parameters'
    else:
        given = found_in(frozen)
    raise TypeError(
        f'frozen is {given}; write adapter, frozen = tx.init(key, model) and pass both, or '
        'frozen = tx.freeze(model, adapter) for an adapter that you have'
    )
