"""LoRA+: a higher learning rate for LoRA's second factor."""

from typing import Any

import jax
import optax

from peftjax.core.entries import Entry
from peftjax.core.numbers import is_plain


def lora_plus_labels(adapter: Any) -> Any:
    """`'fast'` for the arrays `b` that stand beside an `a`, `'slow'` for all others.

    Args:
        adapter: of any method; a magnitude, a bias or a head beside the factors is slow.

    Returns:
        The adapter's structure with a label in place of each array, for `optax.partition`.

    Example:
        >>> tx = peftjax.lora(rank=2, targets=r'hidden')
        >>> adapter, frozen = tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())
        >>> jax.tree.leaves(lora_plus_labels(adapter))
        ['slow', 'fast']
    """

    def labels(node: Any) -> Any:
        slow = jax.tree.map(lambda _: 'slow', node)
        return slow.replace(b='fast') if _is_of_matrix(node) and {'a', 'b'} <= set(node) else slow

    return jax.tree.map(labels, adapter, is_leaf=_is_of_matrix)


def _is_of_matrix(node: Any) -> bool:
    # The names in other entries may be those of a model's leaves: 'a' and 'b' mean nothing there.
    return isinstance(node, Entry) and node.layout is not None


def lora_plus(
    optimizer: optax.GradientTransformation, *, ratio: float = 16.0
) -> optax.GradientTransformation:
    """Wraps an optimiser so that LoRA's `B` learns at `ratio` times the rate of other arrays.

    The update of `B` is multiplied by `ratio`. This equals a higher learning rate if the update is
    linear in the rate, as for Adam and SGD, with weight decay or without.

    Args:
        optimizer: for the whole adapter; its rate is that of `A`.
        ratio: lambda in the paper, larger than 1; the paper recommends about 16.

    Returns:
        An optimiser for the whole adapter.

    Raises:
        ValueError: the ratio is not positive.

    Example:
        >>> tx = peftjax.lora(rank=2, targets=r'hidden')
        >>> adapter, frozen = tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())
        >>> optimizer = lora_plus(optax.sgd(0.5), ratio=4.0)
        >>> slopes = jax.tree.map(jax.numpy.ones_like, adapter)
        >>> updates, _ = optimizer.update(slopes, optimizer.init(adapter), adapter)
        >>> float(updates['hidden/kernel']['a'][0, 0]), float(updates['hidden/kernel']['b'][0, 0])
        (-0.5, -2.0)

    References:
        Hayou et al., LoRA+, 2024 (arXiv:2402.12354), section 4. The factors of an embedding get the
        same rates as others; the authors' code has a separate rate for them.
    """
    if is_plain(ratio) and not ratio > 0:
        raise ValueError(f'ratio is a positive number, got {ratio}')

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, state, params)
        labels = lora_plus_labels(updates)
        factors = {'slow': 1.0, 'fast': ratio}
        return jax.tree.map(lambda leaf, label: factors[label] * leaf, updates, labels), state

    return optax.GradientTransformation(optimizer.init, update)
