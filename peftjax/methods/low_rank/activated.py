"""Activation: a weight method in force from the last invocation in an example on (aLoRA)."""

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
    r"""Activated LoRA: a weight method, in force from the last invocation in an example on.

    `y'_t = m(x)_t` for the tokens from the start of the last `invocation` in their example on, and
    `y'_t = x_t W` for those before it, and for all of an example without one. `m` is what
    `transform` makes of one use of a weight. So keys and values of the text before the invocation
    are those of the base, and one cache of them serves many adapters. An invocation counts where
    all its tokens stand side by side, in one example of a packed row, and none is padding. It adds
    no numbers, and `2 T out` FLOPs forward to the method's own. What is in force depends on the
    tokens, so that no weight stands for it: `merge` raises, and in a chain it stands after other
    weight methods. Generation reads the whole row for each token, since a token that is written may
    complete an invocation.

    Args:
      transform: a method on weights, such as `lora(...)`.
      invocation: token ids, as a tokenizer makes them of the invocation text.

    Returns:
      A transform whose adapter is `{'activated': the adapter of transform}`.

    Raises:
      ValueError: an invocation that is not token ids; a `transform` that starts from a part of the
        weights, or, from `init`, acts on other than uses of weights; in a chain with virtual
        tokens; at a call, where a use has no axis for the batch besides the sequence, or with a
        cache, as each of several calls sees a part of the example.
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
        # One product for both, so that its gradient is one as well.
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
    """Which tokens the method is in force for."""
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
