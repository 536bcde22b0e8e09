"""Activation: a weight method that is active after the last invocation in an example (aLoRA)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import found_in
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.roles import require
from peftjax.core.rules import MatrixRule
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use


@described
def activated(transform: PeftTransform, *, invocation: Sequence[int]) -> PeftTransform:
    r"""Activated LoRA: a weight method that is active from the last invocation onwards.

    `y'_t = m(x)_t` for the tokens from the start of the last `invocation` in their example, and
    `y'_t = x_t W` for the tokens before it. In an example without an invocation, all tokens use
    `W`. `m` is the result of `transform` at one use of a weight. So the text before the invocation
    has the keys and values of the base, and many adapters can share one cache of them. An
    invocation counts if its tokens are adjacent, in one example of a packed row, and none is
    padding. It adds no numbers, and `2 T out` FLOPs in the forward pass to the method's own. The
    tokens decide which weight is active, so the method cannot be merged: `merge` raises, and in a
    chain it must come after other weight methods. Generation reads the whole row for each token,
    since a token that is written may complete an invocation.

    Args:
      transform: a method on weights, such as `lora(...)`.
      invocation: token ids, as a tokenizer makes them of the invocation text.

    Returns:
      A transform whose adapter is `{'activated': the adapter of transform}`.

    Raises:
      ValueError: an invocation that is not token ids; a `transform` that starts from a part of the
        weights; from `init`, a `transform` that acts on anything but uses of weights; in a chain,
        virtual tokens; at a call, a use without a batch axis beside the sequence, or a cache, since
        each call then sees only a part of the example.
      TargetError: from `init`, if the model has not declared the role `token_ids`, or reads one
        sequence and writes another.

    >>> import flax.linen as nn
    >>> ids = jnp.asarray([[4, 5, 6, 2], [4, 5, 2, 2]])
    >>> class Net(nn.Module):
    ...     peftjax_roles = peftjax.Roles(token_ids='ids')
    ...     @nn.compact
    ...     def __call__(self, ids):
    ...         return nn.Dense(2, name='out')(nn.Embed(7, 3, name='embed')(ids))
    >>> model = peftjax.wrap(Net(), Net().init(jax.random.key(0), ids), ids)
    >>> tx = peftjax.activated(peftjax.lora(rank=1, targets='out'), invocation=(5, 6))
    >>> adapter = peftjax.testing.perturb(tx.init(jax.random.key(0), model)[0], seed=1)
    >>> found = peftjax.adapt(model, tx)(adapter, tx.freeze(model, adapter), ids)
    >>> (found != model.apply(model.params, ids)).any(axis=-1)
    Array([[False,  True,  True,  True],
           [False, False, False, False]], dtype=bool)

    References:
      The computation is that of Hugging Face's peft 0.21 (`ALoraLinearVariant`), which names
      Activated LoRA, 2025 (arXiv:2504.12397) as its source; there padding may be a part of the
      invocation, and a generated text has the invocation of its prompt.
    """
    if transform.rest is not None:
        raise ValueError(
            'activated takes a method whose base stays as it is, and this one starts from a part '
            'of the weights, which tokens before the invocation would lack; start it another way'
        )
    wanted = _tokens_of(invocation)

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Any]:
        roles = require(model.roles, model.takes, 'activated', 'token_ids')
        if roles.decoder_ids:
            raise paths.TargetError(
                f'activated looks for the invocation among the tokens of one sequence, and this '
                f'model reads {roles.token_ids!r} and writes {roles.decoder_ids!r}; write the '
                'method without activated'
            )
        adapter = transform.start(key, model)
        for path, rule in transform.rules(adapter, transform.own(model)).items():
            if not isinstance(rule, MatrixRule) or rule.before is not None:
                raise ValueError(
                    f'activated takes a method that acts on the uses of weights alone, and this '
                    f'one acts on {path!r} otherwise; give it to chain beside activated(...)'
                )
        return {'activated': adapter}

    def rules(adapter: dict[str, Any], own: Any) -> dict[str, MatrixRule]:
        if not isinstance(adapter, Mapping) or set(adapter) != {'activated'}:
            raise AdapterError(
                "activated expects an adapter {'activated'} as its own init makes it, found "
                f'{found_in(adapter)}. Was it made by another transform, or is it a part of a '
                "chain's adapter?"
            )
        inner = transform.rules(adapter['activated'], own)
        return {path: _activated(path, rule, wanted) for path, rule in inner.items()}

    return PeftTransform(start, rules, transform.own)


def _tokens_of(invocation: Any) -> tuple[int, ...]:
    ids = np.asarray(invocation)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in 'iu' or ids.min() < 0:
        raise ValueError(
            f"invocation {invocation!r} must be token ids; encode its text with the model's "
            'tokenizer, without special tokens'
        )
    return tuple(ids.tolist())


def _activated(path: str, rule: Any, wanted: tuple[int, ...]) -> MatrixRule:
    def apply(leaves: Any, use: Use) -> Float[jax.Array, '...']:
        plain = use.forward(use.x)
        active = _active(path, wanted, use)
        # One product for both, so that the gradient is one product too.
        changed = rule.apply(
            leaves, use.replace(forward=lambda x: plain if x is use.x else use.forward(x))
        )
        return jnp.where(active, changed.astype(plain.dtype), plain)

    return MatrixRule(
        rule.leaves,
        rule.layout,
        apply,
        merge=None,
        prepare=rule.prepare,
        whole=True,
        reads_ids=True,
    )


def _active(path: str, wanted: tuple[int, ...], use: Use) -> Bool[jax.Array, 'T 1']:
    """The tokens for which the method is active."""
    if use.kind == 'conv' or use.transposed or len(use.axes) != 2:
        raise ValueError(
            f'activated takes [batch, length, in], and {path!r} is used as a {use.kind} '
            f'{"(transposed) " if use.transposed else ""}of {use.x.shape} over {use.axes}; leave '
            'it out of the targets'
        )
    tokens = use.tokens()
    tokens.check((*use.axes, 1), f'activated at {path!r}')
    if tokens.begins or tokens.follows:
        raise ValueError(
            'activated looks for the invocation in a whole example, and a call with a cache sees '
            'a part of it; call the model on whole rows, without a cache'
        )
    active = jnp.broadcast_to(tokens.from_last(wanted), use.axes)
    return active.reshape(-1, 1)
