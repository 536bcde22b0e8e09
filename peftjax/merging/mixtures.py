"""Mixtures of LoRAs: each token takes its own share of each adapter."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Inexact, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.numbers import is_plain
from peftjax.core.rules import MatrixRule, Rule
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.merging.changes import Delta, Factored, aligned
from peftjax.merging.extract import decomposed

_Leaves = Mapping[str, Any]


def arrow(
    deltas: Sequence[Delta],
    *,
    top: int | None = None,
    temperature: float = 1.0,
    targets: paths.Targets | None = None,
) -> PeftTransform:
    r"""Arrow: tokens choose among adapters by the direction that each one stretches most.

    `y = x W + sum_i g_i(x) x L_i R_i` with `g = softmax over the top k of |x . p_i| / temperature`.
    The prototype `p_i: [in]` is the first singular vector of `L_i R_i` on the side of the inputs.
    An adapter that does not change a matrix (its targets leave it out, or its change is zero) has
    no direction there. Its score is minus infinity, and the others share the token among
    themselves. Every leaf of the mixture is in at least one of `deltas`; where all changes of a
    layer are zero, no score is masked, and the shares multiply zeros.

    Nothing trains. With T adapters of rank r and N tokens, the forward pass takes `2 N T (r (in +
    out) + in)` more FLOPs, and no array of a weight's size is formed. It cannot be merged, since
    the shares depend on the token.

    Args:
      deltas: factored deltas, as LoRA and its relatives have; their arrays go into `frozen.own`.
      top: `k`, how many adapters a token takes; all by default.
      temperature: of the softmax, above 0.
      targets: some of the weights that the deltas change; all by default.

    Returns:
      A transform whose adapter is `{leaf path: {}}`, without arrays.

    Raises:
      ValueError: a full change, or `top` or `temperature` out of range; in a call, a weight that is
        not used in a plain product.
      TargetError: from `init`, targets that match nothing, or a weight that no delta changes.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> deltas = [peftjax.merging.delta(mlp, tx, *tx.init(jax.random.key(i), mlp)) for i in (0, 1)]
    >>> adapter, frozen = peftjax.merging.arrow(deltas, top=1).init(jax.random.key(0), mlp)
    >>> frozen.own['hidden/kernel']['prototypes'].shape
    (4, 2)

    References:
      Ostapenko et al., Towards Modular LLMs by Building and Reusing a Library of LoRAs, 2024
      (arXiv:2405.11157). peft approximates the vector by 15 steps of power iteration; here it comes
      from the exact decomposition.
    """
    experts = _Experts(deltas, top)
    _check_temperature(temperature)

    def own(site: WeightSite) -> dict[str, Any]:
        found = [_prototype(change) for change in experts.at(site.path)]
        known = jnp.stack([stretch != 0 for _, stretch in found], -1)
        return {
            **experts.factors(site.path),
            'prototypes': jnp.stack([direction for direction, _ in found], -1),
            'known': known | ~known.any(-1, keepdims=True),
            'temperature': temperature,
        }

    def scores(leaves: _Leaves, x: Float32[jax.Array, 'T in']) -> Float32[jax.Array, 'T k']:
        found = jnp.abs(x @ leaves['prototypes']) / leaves['temperature']
        return jnp.where(leaves['known'][None], found, -jnp.inf)

    def init_weight(key: PRNGKeyArray, matrix: Any, site: WeightSite) -> dict[str, jax.Array]:
        del key, matrix
        experts.at(site.path)
        return {}

    return experts.transform('arrow', targets, init_weight, own, scores)


def x_lora(
    deltas: Sequence[Delta],
    *,
    top: int | None = None,
    temperature: float = 1.0,
    targets: paths.Targets | None = None,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Trained gates over frozen adapters, as in X-LoRA: a share for each token and layer.

    `y = x W + sum_i g_i(x) x L_i R_i` with `g = softmax over the top k of (x V + c) / temperature`,
    `V: [in, T]` and `c: [T]` trained, zero at the start: the mean of the adapters. As in `average`,
    an adapter that does not change a leaf counts as a change of zero there; its gate trains too.
    The forward pass takes `2 N T (r (in + out) + in)` more FLOPs for N tokens. It cannot be merged.

    Args:
      deltas: factored deltas, as LoRA and its relatives have; their arrays go into `frozen.own`.
      top, temperature, targets: as for `arrow`.
      dtype: of the trained gates.

    Returns:
      A transform whose adapter is `{leaf path: {'weight': [*stack, in, T], 'bias': [*stack, T]}}`.

    Raises:
      ValueError, TargetError: as `arrow`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> deltas = [peftjax.merging.delta(mlp, tx, *tx.init(jax.random.key(i), mlp)) for i in (0, 1)]
    >>> adapter, frozen = peftjax.merging.x_lora(deltas).init(jax.random.key(0), mlp)
    >>> adapter['hidden/kernel']['weight'].shape
    (4, 2)

    References:
      Buehler and Buehler, X-LoRA, 2024 (arXiv:2402.07148). In peft, the gates for all layers
      come from one network that reads the last hidden states of a first pass without adapters.
      Here each gate reads the input of its own layer, in one pass, and works with a cache.
    """
    experts = _Experts(deltas, top)
    _check_temperature(temperature)

    def init_weight(
        key: PRNGKeyArray, matrix: Inexact[jax.Array, 'in out'], site: WeightSite
    ) -> dict[str, jax.Array]:
        del key
        experts.at(site.path)
        return {
            'weight': jnp.zeros((matrix.shape[0], experts.count), dtype),
            'bias': jnp.zeros((experts.count,), dtype),
        }

    def own(site: WeightSite) -> dict[str, Any]:
        return {**experts.factors(site.path), 'temperature': temperature}

    def scores(leaves: _Leaves, x: Float32[jax.Array, 'T in']) -> Float32[jax.Array, 'T k']:
        weight, bias = (leaves[name].astype(jnp.float32) for name in ('weight', 'bias'))
        return (x @ weight + bias[None]) / leaves['temperature']

    return experts.transform('x_lora', targets, init_weight, own, scores)


class _Experts:
    """Factored deltas as the experts of a mixture."""

    def __init__(self, deltas: Sequence[Delta], top: int | None):
        changes = aligned(deltas)
        self.count = len(deltas)
        self._top = self.count if top is None else top
        if not isinstance(self._top, int) or not 1 <= self._top <= self.count:
            raise ValueError(f'top is {top!r}; write a whole number from 1 to {self.count}')
        self._changes = {path: _factored(path, each) for path, each in changes.items()}

    def at(self, path: str) -> list[Factored]:
        """The changes of all experts at a leaf, zero where an expert has none."""
        if path not in self._changes:
            raise paths.TargetError(
                f'no delta changes {path!r}{paths.nearby(path, self._changes)}; leave it out of '
                'the targets'
            )
        return self._changes[path]

    def factors(self, path: str) -> dict[str, jax.Array]:
        """`[*stack, in, T r]` and `[*stack, T r, out]`, of experts padded to one rank."""
        changes = self.at(path)
        rank = max(change.rank for change in changes)
        return {
            'left': jnp.concatenate([_padded(each.left, rank, -1) for each in changes], -1),
            'right': jnp.concatenate([_padded(each.right, rank, -2) for each in changes], -2),
        }

    def transform(
        self,
        name: str,
        targets: paths.Targets | None,
        init_weight: Callable[..., Any],
        own: Callable[[WeightSite], dict[str, Any]],
        scores: Callable[[_Leaves, jax.Array], jax.Array],
    ) -> PeftTransform:
        """A transform that adds the experts by shares from `scores`; it does not merge."""

        def apply(leaves: _Leaves, use: Use) -> Float[jax.Array, 'T out']:
            if use.kind != 'dot' or use.transposed:
                raise ValueError(
                    f'{name} gates tokens at plain products, but a target is used as a {use.kind}'
                    f'{" (transposed)" if use.transposed else ""}; leave it out of the targets'
                )
            shares = _shares(scores(leaves, use.x.astype(jnp.float32)), self._top)
            left, right = (leaves[side].astype(use.dtype) for side in ('left', 'right'))
            inner = (use.x @ left).reshape(-1, self.count, left.shape[-1] // self.count)
            mixed = (inner * shares.astype(use.dtype)[..., None]).reshape(-1, left.shape[-1])
            y = use.forward(use.x)
            return y + (mixed @ right).astype(y.dtype)

        found = weightwise(
            init_weight,
            lambda leaves, matrix: matrix,
            apply,
            targets=paths.exactly(self._changes) if targets is None else targets,
            name=name,
            own=own,
        )

        def rules(adapter: Any, numbers: Any) -> dict[str, Rule]:
            made = found.rules(adapter, numbers)
            return {path: _unmerged(rule) for path, rule in made.items()}

        return found.replace(rules=rules)


def _prototype(
    change: Factored,
) -> tuple[Float32[jax.Array, '*stack in'], Float32[jax.Array, '*stack']]:
    """The direction of the inputs that a change stretches most, and by how much."""
    if change.rank == 0:
        nothing = jnp.zeros(change.left.shape[:-1], change.left.dtype)
        return nothing, nothing[..., 0]
    left, values, _ = decomposed(change)
    return left[..., 0], values[..., 0]


def _unmerged(rule: Rule) -> Rule:
    assert isinstance(rule, MatrixRule)
    return dataclasses.replace(rule, merge=None)


def _factored(path: str, changes: Sequence[Any]) -> list[Factored]:
    found = [change for change in changes if isinstance(change, Factored)]
    if len(found) < len(changes):
        raise ValueError(
            f'the change of {path!r} is full, but a mixture takes factors; make factors with '
            'peftjax.merging.to_lora, or split it off with peftjax.merging.split'
        )
    return found


def _padded(array: jax.Array, rank: int, axis: int) -> jax.Array:
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, rank - array.shape[axis])
    return jnp.pad(array, widths)


def _shares(scores: Float32[jax.Array, 'T k'], top: int) -> Float32[jax.Array, 'T k']:
    """The softmax over the largest scores of each token; the others get nothing."""
    if top < scores.shape[-1]:
        places = jax.lax.top_k(scores, top)[1]
        inside = jax.nn.one_hot(places, scores.shape[-1]).sum(-2) > 0
        scores = jnp.where(inside, scores, -jnp.inf)
    return jax.nn.softmax(scores, -1)


def _check_temperature(temperature: Any) -> None:
    if is_plain(temperature) and not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f'temperature is {temperature}; write a number above 0')
