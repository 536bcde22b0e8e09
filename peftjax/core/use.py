"""What a rule sees of the model: a use of a weight, a call of a module, a call of the whole."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.roles import Roles
from peftjax.core.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of one weight, as a rule sees it: always a linear map of one matrix.

    Letters: `T` tokens (all other axes flattened), `in` and `out` as in the leaf's `Layout`.

    Attributes:
      x: operand: `[T, in]`; `[T, out]` if `transposed`; `[T]` integers for a lookup; images in
        the model's own layout for a convolution.
      axes: sizes of the axes that `T` flattens, for example `(batch, length)`; of an image, its
        batch.
      kind: `'dot'`, `'lookup'` or `'conv'`.
      transposed: the map runs from `out` to `in` (a tied output head).
      key: a PRNG key for the adapter's own noise, or None when it is off.
      dtype: dtype of the computation.
      forward: `forward(x)`: what the model computes here without this rule.
      weight: `weight()`: the matrix `[in, out]` in force without this rule.
      product: `product(x, m)`: the same use of another matrix, `[in, k]` (`[k, in]` transposed).
      lowrank: `lowrank(x, a, b)`: the same use of `a @ b` without forming it; `lowrank(x, a, b,
        middle)` of `a @ diag(middle) @ b`, whose gradient by `middle: [r]` costs no product.
      tokens: `tokens()`: which of the axes' positions are tokens, as the model's roles tell.
    """

    x: jax.Array
    axes: tuple[int, ...]
    kind: str
    transposed: bool
    key: jax.Array | None
    dtype: Any
    forward: Callable[[jax.Array], jax.Array]
    weight: Callable[[], jax.Array]
    product: Callable[[jax.Array, jax.Array], jax.Array]
    lowrank: Callable[..., jax.Array]
    tokens: Callable[[], Tokens] = Tokens

    def replace(self, **changes: Any) -> 'Use':
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def dropped(self, rate: jax.Array | float | None) -> jax.Array:
        """`x` after inverted dropout at `rate`; unchanged without a rate or key, and for a lookup.

        The rate may be traced, so that runs of several rates share one program.
        """
        if self.key is None or rate is None or self.kind == 'lookup':
            return self.x
        kept = 1.0 - jnp.asarray(rate, jnp.float32)
        keep = jax.random.bernoulli(self.key, kept, self.x.shape)
        return jnp.where(keep, self.x / kept.astype(self.x.dtype), jnp.zeros_like(self.x))


@dataclasses.dataclass(frozen=True)
class AttentionUse:
    """One call of an attention core, as a rule sees it.

    Letters: `T` queries, `S` keys, `N` heads of width `H`, `K` of keys and values.

    Attributes:
      query: `[B, T, N, H]`.
      key, value: `[B, S, K, H]`.
      mask: who sees whom: a `Mask`, or booleans `[B or 1, N or 1, T or 1, S]`; None for all.
      bias: added to the scores, `[B or 1, N or 1, T or 1, S]`; None for nothing. Behind a method
        with a prefix, in a model with biases by distance: a tuple of such arrays, each for some of
        the keys, in their order.
      core: `core(query, key, value, mask, bias)`: the core's own function, with its scale, soft cap
        and dropout, on other arrays.
      attend: the same, with the rules applied that come before this one at the core.
      prefix_bias: the bias of the keys that the role `prefix_length` counts, `[B or 1, N or 1, T or
        1, n]`; None for a model without biases by distance.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    mask: Any
    bias: jax.Array | tuple[jax.Array, ...] | None
    core: Callable[..., jax.Array]
    attend: Callable[..., jax.Array]
    prefix_bias: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class ModuleUse:
    """One call of one module, as a rule sees it.

    Attributes:
      inputs: the array arguments of the call: positional ones first, then keyword arguments by
        name.
      output: what the module returned (its first array).
      key: a PRNG key for the adapter's own noise, or None when it is off.
      tokens: `tokens()`: the tokens that the module sees, as the model's roles tell.
      around: the array arguments of the module that calls this one, as far as it has a name.
      attention: the call of an attention core; None of any other module.
      number: the index of this call among the calls of the module in one call of the model, from 0.
    """

    inputs: tuple[jax.Array, ...]
    output: jax.Array
    key: jax.Array | None
    tokens: Callable[[], Tokens] = Tokens
    around: tuple[jax.Array, ...] = ()
    attention: AttentionUse | None = None
    number: int = 0


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """One call of the whole model, as a rule sees it.

    Attributes:
      arguments: all arguments of the call, by their names in the signature of the model.
      roles: what the arguments are for.
      key: a PRNG key for the adapter's own noise, or None when it is off.
      run: `run(arguments)`: the model's result with all other rules in force.
      shapes: `shapes(arguments)`: the shapes of the model's result without a method.
    """

    arguments: Mapping[str, Any]
    roles: Roles
    key: jax.Array | None
    run: Callable[[Mapping[str, Any]], Any]
    shapes: Callable[[Mapping[str, Any]], Any]

    def given(self, role: str) -> Any:
        """The argument with a given role, such as `'mask'`; None if the call leaves it out."""
        return self.arguments.get(getattr(self.roles, role))

    @property
    def follows(self) -> bool:
        """Whether this call continues a cached sequence, which may hold virtual tokens already."""
        return self.given('cache') is not None
