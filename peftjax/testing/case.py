"""A method on a model, with claims about it."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.binding.adapt import adapt
from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.core.quantized import dequantize, is_quantized
from peftjax.core.transform import PeftTransform
from peftjax.testing.examples import perturb


@dataclasses.dataclass(frozen=True)
class Case:
    """A method on a model, and claims about it.

    Attributes:
      make: the method as a function of its targets.
      targets: for `make`.
      model: with real parameters and float outputs.
      inputs: keyword arguments of a call; the first axis of arrays is the batch.
      fewer_targets: targets that match only some of the sites, or None to skip that law.
      identity: how far a fresh adapter may move the outputs, relative to their size; None for a
        method that does not start at the identity.
      mergeable: whether the method merges; if not, `merge` must raise MergeError.
      tolerance: for equal numbers, relative to the size of the outputs (10 times as much for
        gradients).
      parameters: the number of trained parameters, by a closed formula; None to skip.
      dense: whether a training step needs an array of a kernel's size: a change that is formed, or
        a gradient of the kernel.
      forward_flops: FLOPs that a forward pass may add, by a closed formula; the law allows 3 %
        more. None to skip.
      roundtrip: saves an adapter and loads it; None to skip.
    """

    make: Callable[[paths.Targets], PeftTransform]
    targets: paths.Targets
    model: Model
    inputs: dict[str, Any]
    fewer_targets: paths.Targets | None = None
    identity: float | None = 0.0
    mergeable: bool = True
    tolerance: float = 1e-5
    parameters: int | None = None
    dense: bool = False
    forward_flops: float | None = None
    roundtrip: Callable[[Adapter], Adapter] | None = None

    @functools.cached_property
    def transform(self) -> PeftTransform:
        return self.make(self.targets)

    @functools.cached_property
    def call(self) -> Callable[..., jax.Array]:
        """`call(adapter, frozen, **inputs)`: the adapted model's first float output."""
        predict = adapt(self.model, self.transform)
        return lambda adapter, frozen, **inputs: first_output(predict(adapter, frozen, **inputs))

    @functools.cached_property
    def apply(self) -> Callable[..., jax.Array]:
        """`apply(params, **inputs)`: the plain model's first float output."""
        return jitted(self.model.apply)

    @functools.cached_property
    def _fresh(self) -> dict[int, tuple[Adapter, Frozen]]:
        return {}

    @functools.cached_property
    def _traces(self) -> collections.Counter[str]:
        """How often a program of this case was traced."""
        return collections.Counter()

    def _step(self, adapter: Adapter, frozen: Frozen, inputs: Any) -> 'Step':
        self._traces['step'] += 1

        def loss(adapter: Adapter) -> tuple[jax.Array, jax.Array]:
            output = self.call(adapter, frozen, **inputs)
            return scalar(output), output

        gradient, output = jax.grad(loss, has_aux=True)(adapter)
        moved = jax.tree.map(lambda leaf, slope: leaf - 1e-3 * slope, adapter, gradient)
        return Step(output, gradient, moved)

    @functools.cached_property
    def _compiled_step(self) -> Callable[..., 'Step']:
        return jax.jit(self._step)

    def step(self, adapter: Adapter, frozen: Frozen | None = None) -> 'Step':
        """One training step on the case's inputs, by a program that all laws share."""
        frozen = self.frozen() if frozen is None else frozen
        return self._compiled_step(adapter, frozen, self.inputs)

    def predict(self, adapter: Adapter) -> jax.Array:
        """`call` with `frozen()`, on the case's inputs."""
        return self.call(adapter, self.frozen(), **self.inputs)

    def init(self, seed: int = 0) -> tuple[Adapter, Frozen]:
        """The result of the transform's `init`.

        It is not one jitted program: compiled one by one, its draws and decompositions are reused
        by all cases with leaves of the same shapes.
        """
        if seed not in self._fresh:
            self._fresh[seed] = self.transform.init(jax.random.key(seed), self.model)
        return self._fresh[seed]

    def fresh(self, seed: int = 0) -> Adapter:
        """The adapter of `init`."""
        return self.init(seed)[0]

    def frozen(self, seed: int = 0) -> Frozen:
        """The frozen values for `fresh(seed)`."""
        return self.init(seed)[1]

    def frozen_axes(self) -> Frozen:
        """Axes for `jax.vmap` over keys: which leaves of `frozen` depend on the key."""
        both = (paths.flatten(self.frozen(seed)) for seed in (0, 1))
        pairs = zip(*(each.values() for each in both), strict=True)
        axes = [None if np.array_equal(one, other) else 0 for one, other in pairs]
        structure = jax.tree.structure(self.frozen(), is_leaf=is_quantized)
        return jax.tree.unflatten(structure, axes)

    def moved(self, seed: int = 0) -> Adapter:
        """An adapter away from its initial values, without zeros by construction."""
        return perturb(self.fresh(seed), seed)

    def merged(self, adapter: Adapter) -> Any:
        """The model's parameters with the adapter merged."""
        frozen = self.frozen()
        dense = frozen._replace(params=dequantize(frozen.params))
        return self.transform.merge(adapter, dense)

    @functools.cached_property
    def compiled_merged(self) -> Callable[[Adapter], Any]:
        """`merged`, as a program that all laws share."""
        return jax.jit(self.merged)

    def by_merging(self, adapter: Adapter) -> Adapter:
        """The gradient of `step` by the merged route: of the weights, pulled back by `merge`.

        The gradient of the weights is a program that all cases of a model share.
        """
        slopes = weight_gradient(self.model.apply)(self.compiled_merged(adapter), self.inputs)

        def pulled_back(adapter: Adapter, slopes: list[jax.Array]) -> Adapter:
            return jax.vjp(lambda adapter: floats(self.merged(adapter)), adapter)[1](slopes)[0]

        return jax.jit(pulled_back)(adapter, slopes)


class Step(NamedTuple):
    """The results of a training step.

    Attributes:
      output: of the adapted model.
      gradient: of a scalar of the output with respect to the adapter.
      moved: the adapter after the step.
    """

    output: jax.Array
    gradient: Adapter
    moved: Adapter


@functools.lru_cache(maxsize=16)
def jitted(apply: Callable[..., Any]) -> Callable[..., jax.Array]:
    """The first float output of `apply`, compiled once for all cases of a model."""
    return jax.jit(lambda params, **inputs: first_output(apply(params, **inputs)))


@functools.lru_cache(maxsize=16)
def weight_gradient(apply: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
    """The gradient of a scalar of the output with respect to the float leaves.

    It is compiled once for all cases of a model.
    """

    def gradient(params: Any, inputs: Any) -> list[jax.Array]:
        leaves, structure = jax.tree.flatten(params)

        def loss(floats: list[jax.Array]) -> jax.Array:
            rest = iter(floats)
            mixed = [next(rest) if is_float(leaf) else leaf for leaf in leaves]
            return scalar(first_output(apply(jax.tree.unflatten(structure, mixed), **inputs)))

        return jax.grad(loss)(floats(params))

    return jax.jit(gradient)


def is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def floats(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def first_output(result: Any) -> jax.Array:
    return floats(result)[0]


def scalar(output: jax.Array) -> jax.Array:
    weights = jnp.cos(jnp.arange(output.size)).reshape(output.shape)
    return (jnp.tanh(output.astype(jnp.float32)) * weights).sum()
