"""A trained adapter with its transform, as an argument of functions on several adapters."""

from typing import Any

from peftjax.core.entries import Adapter
from peftjax.core.frozen import Frozen, check_frozen
from peftjax.core.transform import PeftTransform

Trained = tuple[PeftTransform, Adapter, Frozen, *tuple[Any, ...]]
"""A transform, an adapter of it, and what is frozen beside: what `load_adapter`, `restore` and
`merging.to_lora` return, or the transform with what its `init` returns. More fields are ignored."""


def parts(member: Trained) -> tuple[PeftTransform, Adapter, Frozen]:
    """The transform, the adapter and `frozen`.

    Raises:
      TypeError: it is something else.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> transform, adapter, frozen = parts((tx, *tx.init(jax.random.key(0), mlp), 'another field'))
    >>> transform is tx, sorted(adapter)
    (True, ['hidden/kernel'])
    """
    given: Any = member
    if not isinstance(given, tuple | list) or len(given) < 3:
        size = f' of {len(given)}' if isinstance(given, tuple | list) else ''
        raise TypeError(
            f'a member is a {type(given).__name__}{size}; write (transform, adapter, frozen), or '
            'what peftjax.load_adapter returned'
        )
    transform, adapter, frozen = given[:3]
    if not isinstance(transform, PeftTransform):
        raise TypeError(
            f'a member begins with a {type(transform).__name__}; write (transform, adapter, frozen)'
        )
    check_frozen(adapter, frozen)
    return transform, adapter, frozen
