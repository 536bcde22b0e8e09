"""LoRA-FA's gradient: moves the weight through `B` as closely to full training as possible."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Float32

from peftjax.core.entries import Entry
from peftjax.core.shapes import HostArray

_LEAST = 1e-8  # Added to the diagonal, so that dependent columns of A have an inverse.


def lora_fa_projection(own: Any) -> optax.GradientTransformation:
    r"""Turns the gradient `g` of LoRA-FA's `B` into `(A^T A)^-1 g / s^2`.

    With `A: [in, r]`, `B: [r, out]` and the scale `s`, a change `dB` changes the weight by
    `s A dB`. Of all `dB`, the one that is returned makes this change closest to the gradient of
    the weight itself. Put the transformation in front of an optimiser; the gradients of other
    methods pass through.

    Args:
        own: `frozen.own` of `lora_fa`, or of a chain with it.

    Returns:
        A transformation for the whole adapter. Its state holds the inverses, `[*stack, r, r]`
        float32 for each leaf.

    Raises:
        ValueError: `own` holds no frozen factors of `lora_fa`.

    Example:
        >>> tx = peftjax.lora_fa(rank=2, targets=r'hidden')
        >>> adapter, frozen = tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())
        >>> optimizer = optax.chain(lora_fa_projection(frozen.own), optax.adamw(1e-3))
        >>> state = optimizer.init(adapter)
        >>> state[0]['hidden/kernel'].shape
        (2, 2)

    References:
        Zhang et al., LoRA-FA, 2023 (arXiv:2308.03303). Hugging Face's peft
        (`create_lorafa_optimizer`, version 0.21.2) multiplies in bfloat16 if the device has it; we
        use float32. Its AdamW adds an epsilon of 1e-6: write `optax.adamw(lr, eps=1e-6)`.
    """
    if not any(map(_is_frozen, jax.tree.leaves(own, is_leaf=_is_frozen))):
        raise ValueError(
            'own holds no frozen factors of lora_fa; write lora_fa_projection(frozen.own), with '
            'the frozen that init of lora_fa returns'
        )

    def init(params: Any) -> Any:
        del params
        return _inverses(own)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return _projected(updates, state), state

    return optax.GradientTransformation(init, update)


def _is_frozen(node: Any) -> bool:
    return isinstance(node, Entry) and node.method == 'lora_fa'


def _inverses(own: Any) -> Any:
    """The inverse of each leaf of LoRA-FA, in the structure of the chain; None for others."""
    if _is_frozen(own):
        return {path: _inverse(each['a'], each['scale']) for path, each in own.items()}
    if isinstance(own, tuple) and own:
        return tuple(map(_inverses, own))
    if isinstance(own, dict):
        return {name: _inverses(each) for name, each in own.items()}
    return None


def _inverse(
    a: Float[HostArray, '*stack in rank'], scale: Float[jax.Array, '']
) -> Float32[jax.Array, '*stack rank rank']:
    wide = jnp.asarray(a, jnp.float32)
    gram = jnp.swapaxes(wide, -1, -2) @ wide
    ridge = jnp.broadcast_to(_LEAST * jnp.eye(gram.shape[-1]), gram.shape)
    return jnp.linalg.pinv(gram + ridge, hermitian=True) / jnp.square(scale)


def _projected(updates: Any, inverses: Any) -> Any:
    if inverses is None:
        return updates
    if isinstance(inverses, tuple):
        return tuple(map(_projected, updates, inverses))
    return {
        name: _turned(each, inverses[name])
        if isinstance(each, Entry)
        else _projected(each, inverses[name])
        for name, each in updates.items()
    }


def _turned(entry: Entry, inverse: Any) -> Entry:
    if inverse is None:
        return entry
    return entry.replace(b=(inverse @ entry['b']).astype(entry['b'].dtype))
