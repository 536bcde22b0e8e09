"""Gating: for each example, a trained switch on the change that a weight method makes."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries, found_in
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.roles import require
from peftjax.core.rules import MatrixRule
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use


class Gate(TypedDict):
    weight: Float[jax.Array, ' in']
    bias: Float[jax.Array, '']


@described
def gated(transform: PeftTransform, *, dtype: Any = jnp.float32) -> PeftTransform:
    r"""Gates a weight method: `y' = y + g(x) (m(x) - y)`.

    `y = x W` is the result of the model at one use of a weight, and `m(x)` is the result with
    `transform`. `g(x)` is one number for each example: the mean of `sigmoid(x v + c)` over its
    tokens, without padding. `v: [in]` and `c` train. The gate adds `in + 1` numbers for each
    weight. For a method that adds to `y`, such as LoRA, it adds `2 T in + 3 T out` FLOPs in the
    forward pass. `v` starts from a normal of deviation 0.02, `c` from zero: `g` near a half. A gate
    depends on the example, so it cannot be merged: `merge` raises, and in a chain it must come
    after other weight methods.

    Args:
      transform: a method on weights, such as `lora(...)`; bottleneck adapters have their own gate.
      dtype: of the gates.

    Returns:
      A transform whose adapter is `{'inner': the adapter of transform, 'gates': {leaf path:
      {'weight': [*stack, in], 'bias': stack}}}`.

    Raises:
      ValueError: from `init`, if `transform` acts on anything but uses of weights; at a call, if a
        use has no batch axis beside the sequence, or if there is a cache, since each call then sees
        only a part of the example. `generator` calls the model on whole rows.
      TargetError: from `init`, if the model has declared no roles.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.gated(peftjax.lora(rank=2, targets=r'hidden'))
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> adapter['gates']['hidden/kernel']['weight'].shape
    (4,)

    References:
      Mao et al., UniPELT, 2021 (arXiv:2110.07577), section 3.2. AdapterHub's gate stands in place
      of LoRA's `alpha / r`: write `alpha=rank` for the same.
    """

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Any]:
        require(model.roles, model.takes, 'gated')
        adapter = transform.start(paths.fold_in(key, 'inner'), model)
        gates = {}
        for path, rule in transform.rules(adapter, transform.own(model)).items():
            if not isinstance(rule, MatrixRule) or rule.before is not None:
                raise ValueError(
                    f'gated takes a method that acts on the uses of weights alone, and this one '
                    f'acts on {path!r} otherwise; give it to chain beside gated(...)'
                )
            layout = rule.layout
            shape = (*layout.stack_shape, layout.inputs)
            gate = {
                'weight': 0.02 * jax.random.normal(paths.fold_in(key, path), shape, dtype),
                'bias': jnp.zeros(layout.stack_shape, dtype),
            }
            gates[path] = Entry('gated', gate, layout)
        return {'inner': adapter, 'gates': gates}

    def rules(adapter: dict[str, Any], own: Any) -> dict[str, MatrixRule]:
        _check_made_here(adapter)
        inner = transform.rules(adapter['inner'], own)
        if set(inner) != set(adapter['gates']):
            raise AdapterError(
                f'gated has gates at {sorted(adapter["gates"])}, and the method inside acts on '
                f'{sorted(inner)}; init makes one for each'
            )
        return {path: _gated(path, inner[path], gate) for path, gate in adapter['gates'].items()}

    def rest(params: Any, adapter: dict[str, Any], own: Any) -> Any:
        return transform.remaining(params, adapter['inner'], own)

    return PeftTransform(start, rules, transform.own, None if transform.rest is None else rest)


def _gated(path: str, rule: Any, gate: Entry) -> MatrixRule:
    def apply(leaves: Any, use: Use) -> Float[jax.Array, '...']:
        plain = use.forward(use.x)
        share = _share(path, leaves[1], use)
        # One product for both, so that the gradient is one product too.
        changed = rule.apply(
            leaves[0], use.replace(forward=lambda x: plain if x is use.x else use.forward(x))
        )
        return plain + share.astype(plain.dtype) * (changed - plain)

    def prepare(leaves: Any, matrix: Float[jax.Array, 'in out']) -> Any:
        return rule.prepare(leaves[0], matrix), leaves[1]

    return MatrixRule(
        (rule.leaves, dict(gate)),
        rule.layout,
        apply,
        merge=None,
        prepare=None if rule.prepare is None else prepare,
        whole=True,
    )


def _share(path: str, gate: Gate, use: Use) -> Float[jax.Array, 'T 1']:
    """`[T, 1]`: the gate of the example that each token belongs to."""
    if use.kind != 'dot' or use.transposed or len(use.axes) != 2:
        raise ValueError(
            f'a gate takes [batch, length, in], and {path!r} is used as a {use.kind} '
            f'{"(transposed) " if use.transposed else ""}of {use.x.shape} over {use.axes}; leave '
            'it out of the targets'
        )
    x, tokens = use.x, use.tokens()
    tokens.check((*use.axes, x.shape[-1]), f'the gate of {path!r}')
    scores = jax.nn.sigmoid(x @ gate['weight'].astype(x.dtype) + gate['bias'].astype(x.dtype))
    means = tokens.means(scores.reshape(use.axes), 'gated')
    return jnp.broadcast_to(means, use.axes).reshape(-1, 1)


def _check_made_here(adapter: Any) -> None:
    if isinstance(adapter, Mapping) and set(adapter) == {'inner', 'gates'}:
        check_entries(adapter['gates'], 'gated')
        return
    raise AdapterError(
        "gated expects an adapter {'inner', 'gates'} as its own init makes it, found "
        f"{found_in(adapter)}. Was it made by another transform, or is it a part of a chain's "
        'adapter?'
    )
