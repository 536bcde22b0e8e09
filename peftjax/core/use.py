"""What a rule sees of the model: a use of a weight, a call of a module, a call of the whole."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of one weight, as a rule sees it: always a linear map of one matrix.

    Letters: `T` tokens (all other axes flattened), `in` and `out` as in the leaf's `Layout`.

    Attributes:
      x: operand: `[T, in]`; `[T, out]` if `transposed`; `[T]` integers for a lookup; images in
        the model's own layout for a convolution.
      tokens: sizes of the axes that `T` flattens, for example `(batch, length)`; of an image,
        its batch.
      kind: `'dot'`, `'lookup'` or `'conv'`.
      transposed: the map runs from `out` to `in` (a tied output head).
      key: a PRNG key for the adapter's own noise, or None when it is off.
      dtype: dtype of the computation.
      forward: `forward(x)`: what the model computes here without this rule.
      weight: `weight()`: the matrix `[in, out]` in force without this rule.
      product: `product(x, m)`: the same use of another matrix, `[in, k]` (`[k, in]` transposed).
      lowrank: `lowrank(x, a, b)`: the same use of `a @ b` without forming it; `lowrank(x, a, b,
        middle)` of `a @ diag(middle) @ b`, whose gradient by `middle: [r]` costs no product.
    """

    x: jax.Array
    tokens: tuple[int, ...]
    kind: str
    transposed: bool
    key: jax.Array | None
    dtype: Any
    forward: Callable[[jax.Array], jax.Array]
    weight: Callable[[], jax.Array]
    product: Callable[[jax.Array, jax.Array], jax.Array]
    lowrank: Callable[..., jax.Array]

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
class ModuleUse:
    """One call of one module, as a rule sees it.

    Attributes:
      inputs: the array arguments of the call, keyword arguments behind positional ones by name.
      output: what the module returned (its first array).
      key: a PRNG key for the adapter's own noise, or None when it is off.
      keywords: the keyword arguments of the whole model's call, such as `attention_mask`.
      around: the array arguments of the module that calls this one, as far as it has a name.
    """

    inputs: tuple[jax.Array, ...]
    output: jax.Array
    key: jax.Array | None
    keywords: Mapping[str, Any]
    around: tuple[jax.Array, ...] = ()

    @property
    def follows(self) -> bool:
        """See `ModelCall.follows`."""
        return self.keywords.get('cache') is not None


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """One call of the whole model, as a rule sees it.

    Attributes:
      args, keywords: the arguments: arrays, and whatever the model takes besides.
      key: a PRNG key for the adapter's own noise, or None when it is off.
      run: `run(*args, **keywords)`: the model's result with all other rules in force.
      takes: names of the arguments that the model knows.
    """

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    key: jax.Array | None
    run: Callable[..., Any]
    takes: tuple[str, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether the tokens go on behind those in a `cache`, virtual ones among them."""
        return self.keywords.get('cache') is not None
