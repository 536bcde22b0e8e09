"""The contract every method keeps, as checks to run on a transform of one's own.

`check(case)` runs all laws; each law is a function of a `Case`, so a test table can name them.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax.binding import jaxprs
from peftjax.binding.adapt import adapt
from peftjax.binding.wrap import wrap
from peftjax.core import paths
from peftjax.core.combine import chain
from peftjax.core.entries import Adapter, Entry
from peftjax.core.errors import AdapterError, MergeError
from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.core.quantized import dequantize, is_quantized
from peftjax.core.summary import summary
from peftjax.core.transform import PeftTransform


@dataclasses.dataclass(frozen=True)
class Case:
    """A method on a model, and what is claimed of it.

    Attributes:
      make: the method as a function of its targets.
      targets: for `make`.
      model: real parameters, float outputs.
      inputs: keyword arguments of a call; arrays have the batch in front.
      fewer_targets: targets that match some of the sites only, or None to skip that law.
      identity: how far a fresh adapter may move the outputs, relative to their size; None for a
        method that does not start at the identity.
      mergeable: whether the method merges; one that does not must say so.
      tolerance: of equal numbers, relative to the size of the outputs (of gradients: 10 times).
      parameters: how many train, by a closed formula; None to skip.
      dense: whether the mathematics needs an array of a kernel's size on the training route, a
        change that is formed or a gradient of the kernel.
      forward_flops: the most a forward pass adds, by a closed formula, plus 3 %; None to skip.
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
        return lambda adapter, frozen, **inputs: _output(predict(adapter, frozen, **inputs))

    @functools.cached_property
    def apply(self) -> Callable[..., jax.Array]:
        """`apply(params, **inputs)`: the plain model's first float output."""
        return _jitted(self.model.apply)

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
            return _loss(output), output

        gradient, output = jax.grad(loss, has_aux=True)(adapter)
        moved = jax.tree.map(lambda leaf, slope: leaf - 1e-3 * slope, adapter, gradient)
        return Step(output, gradient, moved)

    @functools.cached_property
    def _compiled_step(self) -> Callable[..., 'Step']:
        return jax.jit(self._step)

    def step(self, adapter: Adapter, frozen: Frozen | None = None) -> 'Step':
        """One step of training on the case's inputs: one program for all laws."""
        frozen = self.frozen() if frozen is None else frozen
        return self._compiled_step(adapter, frozen, self.inputs)

    def predict(self, adapter: Adapter) -> jax.Array:
        """`call` beside `frozen()`, on the case's inputs."""
        return self.call(adapter, self.frozen(), **self.inputs)

    def init(self, seed: int = 0) -> tuple[Adapter, Frozen]:
        """What the transform's `init` gives.

        Not in a program of its own: its draws and decompositions, compiled alone, are those of
        every case whose leaves have these shapes.
        """
        if seed not in self._fresh:
            self._fresh[seed] = self.transform.init(jax.random.key(seed), self.model)
        return self._fresh[seed]

    def fresh(self, seed: int = 0) -> Adapter:
        """An adapter as `init` gives it."""
        return self.init(seed)[0]

    def frozen(self, seed: int = 0) -> Frozen:
        """What does not train beside `fresh(seed)`."""
        return self.init(seed)[1]

    def frozen_axes(self) -> Frozen:
        """Axes for `jax.vmap` over keys: which leaves of `frozen` depend on the key."""
        both = (paths.flatten(self.frozen(seed)) for seed in (0, 1))
        pairs = zip(*(each.values() for each in both), strict=True)
        axes = [None if np.array_equal(one, other) else 0 for one, other in pairs]
        structure = jax.tree.structure(self.frozen(), is_leaf=is_quantized)
        return jax.tree.unflatten(structure, axes)

    def moved(self, seed: int = 0) -> Adapter:
        """An adapter away from its initial values, where nothing is zero by construction."""
        return perturb(self.fresh(seed), seed)

    def merged(self, adapter: Adapter) -> Any:
        """The model's parameters with the adapter merged."""
        frozen = self.frozen()
        dense = frozen._replace(params=dequantize(frozen.params))
        return self.transform.merge(adapter, dense)

    @functools.cached_property
    def compiled_merged(self) -> Callable[[Adapter], Any]:
        """`merged`, one program for all laws."""
        return jax.jit(self.merged)

    def by_merging(self, adapter: Adapter) -> Adapter:
        """The gradient of `step` by the merged route: that of the weights, pulled back by `merge`.

        The first factor of this chain rule is one program for all cases of a model.
        """
        slopes = _weight_gradient(self.model.apply)(self.compiled_merged(adapter), self.inputs)

        def pulled_back(adapter: Adapter, slopes: list[jax.Array]) -> Adapter:
            return jax.vjp(lambda adapter: _floats(self.merged(adapter)), adapter)[1](slopes)[0]

        return jax.jit(pulled_back)(adapter, slopes)


class Step(NamedTuple):
    """What a step of training gives.

    Attributes:
      output: of the adapted model.
      gradient: of a scalar of the output by the adapter.
      moved: the adapter after the step.
    """

    output: jax.Array
    gradient: Adapter
    moved: Adapter


def check(case: Case) -> None:
    """Runs every law of the contract.

    Raises:
      AssertionError: naming the law that fails, and by how much.

    >>> check(Case(make=lambda targets: peftjax.lora(rank=2, targets=targets), targets=r'hidden',
    ...            model=tiny_mlp(), inputs={'x': jnp.ones((8, 4))}, parameters=2 * (4 + 8)))
    """
    for name, law in LAWS.items():
        try:
            law(case)
        except AssertionError as error:
            raise AssertionError(f'law {name!r}: {error}') from error


class _MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, name='out')(nn.relu(nn.Dense(8, name='hidden')(x)))


def tiny_mlp() -> Model:
    """Two dense layers, 4 -> 8 -> 3, for examples: `apply(params, x)` with `x: [..., 4]`.

    >>> tiny_mlp().apply(tiny_mlp().params, jnp.ones((2, 4))).shape
    (2, 3)
    """
    x = jnp.ones((1, 4))
    return wrap(_MLP(), _MLP().init(jax.random.key(0), x), {'x': x})


def perturb(adapter: Adapter, seed: int, size: float = 0.05) -> Adapter:
    """`adapter` plus normal noise of deviation `size` in every leaf."""
    random = np.random.default_rng(seed)

    def noisy(leaf: jax.Array) -> jax.Array:
        return leaf + jnp.asarray(size * random.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(noisy, adapter)


def identity_at_init(case: Case) -> None:
    """A fresh adapter on its frozen base leaves the model's outputs as they are."""
    if case.identity is None:
        return
    plain = case.apply(case.model.params, **case.inputs)
    adapter = case.fresh()
    _assert_close(case.step(adapter).output, plain, case.identity + case.tolerance)


def merge_keeps_structure(case: Case) -> None:
    """`merge` keeps structure, shapes and dtypes; a method that cannot merge names its sites."""
    params = case.model.params
    if not case.mergeable:
        try:
            case.transform.merge(*case.init())
        except MergeError as error:
            adapter, frozen = case.init()
            site = next(iter(case.transform.rules(adapter, frozen.own)))
            assert site in str(error), f'{site!r} is not named in {error}'
            return
        raise AssertionError('merge did not raise MergeError')
    merged = case.compiled_merged(case.moved())
    assert _shapes(merged) == _shapes(params), 'merge changed a shape, dtype or the structure'


def routes_agree(case: Case) -> None:
    """The training route computes what the model computes with merged parameters."""
    if not case.mergeable:
        return
    adapter = case.moved()
    merged = case.apply(case.compiled_merged(adapter), **case.inputs)
    _assert_close(case.step(adapter).output, merged, case.tolerance)


def gradients_agree(case: Case) -> None:
    """Gradients are finite, reach every leaf, and are those of the merged route."""
    adapter = case.moved()
    gradients = paths.flatten(jax.device_get(case.step(adapter).gradient))
    for path, leaf in gradients.items():
        assert np.isfinite(leaf).all(), f'the gradient of {path} is not finite'
        assert np.any(leaf != 0), f'no gradient reaches {path}'
    if case.mergeable:
        theirs = paths.flatten(jax.device_get(case.by_merging(adapter)))
        size = max(float(np.abs(leaf).max()) for leaf in theirs.values())
        for path, leaf in gradients.items():
            _assert_close(leaf, theirs[path], 10 * case.tolerance, path, size)


def init_is_abstract(case: Case) -> None:
    """`init` runs under `eval_shape`, on abstract parameters too, with the same result."""
    expected = _shapes(case.init())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), case.model.params
    )
    for params in (case.model.params, abstract):
        model = case.model.replace(params=params)
        found = _shapes(jax.eval_shape(case.transform.init, jax.random.key(0), model))
        assert found == expected, f'abstract init gives {found}, init gives {expected}'


def vmaps_over_keys(case: Case) -> None:
    """K adapters from K keys run on one base in one program, each as it does alone."""
    keys = jax.random.split(jax.random.key(3), 2)
    each = case.frozen_axes()
    many = jax.jit(jax.vmap(case.transform.init, in_axes=(0, None), out_axes=(0, each)))
    adapters, frozen = many(keys, case.model)
    call = jax.vmap(lambda *both: case.call(*both, **case.inputs), in_axes=(0, each))
    together = jax.device_get(jax.jit(call)(adapters, frozen))
    for i, key in enumerate(keys):
        alone = case.step(*case.transform.init(key, case.model)).output
        _assert_close(together[i], alone, case.tolerance)


def second_step_compiles_nothing(case: Case) -> None:
    """A second step, and a new adapter of the same shapes, reuse the program."""
    moved = case.step(case.fresh()).moved
    before = case._traces['step']
    case.step(moved)
    case.step(*case.init(seed=7))
    again = case._traces['step'] - before
    assert not again, f'steps on adapters of one shape were traced {again} times more'


def sharding_keeps_numbers(case: Case) -> None:
    """On a mesh of all devices, batch and base sharded, steps give the same numbers, and the
    second one, on the adapter that the first returned, compiles nothing."""
    mesh = Mesh(np.array(jax.devices()), ('data',))
    replicated = NamedSharding(mesh, PartitionSpec())
    own = case.frozen()
    params = jax.tree.map(lambda leaf: _shard(leaf, mesh), own.params)
    frozen = Frozen(params, jax.device_put(own.own, replicated))
    inputs = {name: _shard(value, mesh, axis=0) for name, value in case.inputs.items()}
    adapter = case.moved()
    alone = paths.flatten(case.step(adapter).moved)
    before = case._traces['step']
    on_mesh = jax.jit(case._step, out_shardings=replicated)
    spread = on_mesh(jax.device_put(adapter, replicated), frozen, inputs).moved
    for path, leaf in paths.flatten(spread).items():
        _assert_close(leaf, alone[path], case.tolerance, path)
    on_mesh(spread, frozen, inputs)
    assert case._traces['step'] == before + 1, 'a second step on the mesh was traced again'


def keys_are_stable(case: Case) -> None:
    """Adding a target changes no other initial value."""
    if case.fewer_targets is None:
        return
    fewer, _ = case.make(case.fewer_targets).init(jax.random.key(0), case.model)
    few, all_ = paths.flatten(fewer), paths.flatten(case.fresh())
    assert set(few) < set(all_), 'fewer_targets must match some of the sites only'
    for path, leaf in few.items():
        assert np.array_equal(leaf, all_[path]), f'{path} starts elsewhere'


def wrong_target_raises(case: Case) -> None:
    """A pattern that matches nothing raises and offers names that exist."""
    try:
        case.make(r'no/such/place').init(jax.random.key(0), case.model)
    except paths.TargetError as error:
        sites = [*case.model.sites.weights, *case.model.sites.modules]
        assert 'no/such/place' in str(error) and any(site in str(error) for site in sites), (
            f'the error offers no name that exists: {error}'
        )
        return
    raise AssertionError('a pattern that matches nothing did not raise TargetError')


def counts_match(case: Case) -> None:
    """The number of trained parameters is that of the closed formula."""
    found = summary(case.transform, case.model).trainable
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(case.fresh()))
    assert found == size, f'summary counts {found}, the adapter holds {size}'
    if case.parameters is not None:
        assert found == case.parameters, f'{found} parameters, the formula gives {case.parameters}'


def dense_only_if_said(case: Case) -> None:
    """No product of a training step has the shape of a kernel acted on, unless the case says so.

    Such a product is the gradient of a frozen kernel, or a change of it that is formed. Square
    kernels are passed over, since other arrays may have their shape.
    """
    adapter = case.moved()
    rules = case.transform.rules(adapter, case.frozen().own)
    sites = (case.model.sites.weights.get(path) for path in rules)
    layouts = [site.layout for site in sites if site is not None and site.layout is not None]
    kernels = {(i, o) for layout in layouts if (i := layout.inputs) != (o := layout.outputs)}
    kernels |= {(o, i) for i, o in kernels}
    program = jax.make_jaxpr(jax.grad(lambda adapter: _loss(case.predict(adapter))))(adapter)
    found = {shape[-2:] for shape in _product_shapes(program.jaxpr)} & kernels
    if case.dense:
        assert found or not kernels, 'no product of the shape of a kernel: dense=True is not so'
    else:
        assert not found, f'a training step forms products of the shape of a kernel: {found}'


def forward_cost_matches(case: Case) -> None:
    """Compiled FLOPs added to a forward pass are at most those of the closed formula, plus 3 %."""
    if case.forward_flops is None:
        return
    params = case.model.params
    plain = _flops(case.apply, params, **case.inputs)
    adapter, frozen = case.init()
    # What codes cost to read is the scheme's, not the method's.
    whole = frozen._replace(params=dequantize(frozen.params))
    adapted = _flops(case.call, adapter, whole, **case.inputs)
    added = adapted - plain
    assert added <= 1.03 * case.forward_flops, (
        f'a forward pass adds {added:.4g} FLOPs, the formula allows {case.forward_flops:.4g}'
    )


def saving_is_exact(case: Case) -> None:
    """An adapter comes back from disk bit for bit."""
    if case.roundtrip is None:
        return
    adapter = case.moved()
    loaded = case.roundtrip(adapter)
    assert _shapes(loaded) == _shapes(adapter), 'the loaded adapter has another structure'
    for (path, mine), theirs in zip(
        paths.flatten(adapter).items(), jax.tree.leaves(loaded), strict=True
    ):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes(), f'{path} differs'


def other_methods_are_refused(case: Case) -> None:
    """An adapter that says it is of another method raises, in a call and in `merge`."""
    other = jax.tree.map(_of_another_method, case.fresh(), is_leaf=_is_entry)
    if jax.tree.structure(other) == jax.tree.structure(case.fresh()):
        return
    frozen = case.frozen()
    for use in (case.call, case.transform.merge):
        inputs = case.inputs if use is case.call else {}
        try:
            use(other, frozen, **inputs)
        except AdapterError:
            continue
        raise AssertionError('an adapter of another method was taken')


def _is_entry(node: Any) -> bool:
    return isinstance(node, Entry)


def _of_another_method(node: Any) -> Any:
    return Entry('another', node, node.layout) if isinstance(node, Entry) else node


def check_composition(first: Case, second: Case) -> None:
    """Two methods on one model work as a chain, or refuse with a reason.

    Raises:
      AssertionError: the chain's routes disagree, or it fails without saying why.
    """
    both = dataclasses.replace(
        first,
        make=lambda _: chain(first.transform, second.transform),
        mergeable=first.mergeable and second.mergeable,
    )
    try:
        both.fresh()
    except ValueError as refusal:
        assert 'chain' in str(refusal), f'the refusal does not say what to do: {refusal}'
        return
    adapter = both.moved()
    found = both.predict(adapter)
    assert np.isfinite(np.asarray(found)).all(), 'the chain gives non-finite values'
    if both.mergeable:
        merged = both.apply(both.compiled_merged(adapter), **both.inputs)
        _assert_close(found, merged, both.tolerance)


LAWS: dict[str, Callable[[Case], None]] = {
    law.__name__: law
    for law in (
        identity_at_init,
        merge_keeps_structure,
        routes_agree,
        gradients_agree,
        init_is_abstract,
        vmaps_over_keys,
        second_step_compiles_nothing,
        sharding_keeps_numbers,
        keys_are_stable,
        wrong_target_raises,
        counts_match,
        dense_only_if_said,
        forward_cost_matches,
        saving_is_exact,
        other_methods_are_refused,
    )
}
"""Every law by name."""


@functools.lru_cache(maxsize=16)
def _jitted(apply: Callable[..., Any]) -> Callable[..., jax.Array]:
    """The first float output of `apply`, compiled once for all cases of a model."""
    return jax.jit(lambda params, **inputs: _output(apply(params, **inputs)))


@functools.lru_cache(maxsize=16)
def _weight_gradient(apply: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
    """Of a scalar of the output by the float leaves, compiled once for all cases of a model."""

    def gradient(params: Any, inputs: Any) -> list[jax.Array]:
        leaves, structure = jax.tree.flatten(params)

        def loss(floats: list[jax.Array]) -> jax.Array:
            rest = iter(floats)
            mixed = [next(rest) if _is_float(leaf) else leaf for leaf in leaves]
            return _loss(_output(apply(jax.tree.unflatten(structure, mixed), **inputs)))

        return jax.grad(loss)(_floats(params))

    return jax.jit(gradient)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _floats(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def _output(result: Any) -> jax.Array:
    return _floats(result)[0]


def _loss(output: jax.Array) -> jax.Array:
    weights = jnp.cos(jnp.arange(output.size)).reshape(output.shape)
    return (jnp.tanh(output.astype(jnp.float32)) * weights).sum()


def _product_shapes(program: Any) -> set[tuple[int, ...]]:
    """Shapes of the results of all matrix products of a jaxpr, those inside of loops too."""
    found: set[tuple[int, ...]] = set()
    for equation in program.eqns:
        if isinstance(jaxprs.read(equation), jaxprs.Dot):
            found.add(equation.outvars[0].aval.shape)
        for inner in jaxprs.programs_in(equation):
            found |= _product_shapes(inner)
    return found


def _shapes(tree: Any) -> dict[str, tuple[Any, ...]]:
    return {path: (leaf.shape, jnp.dtype(leaf.dtype)) for path, leaf in paths.flatten(tree).items()}


def _assert_close(
    mine: jax.Array,
    theirs: jax.Array,
    tolerance: float,
    what: str = 'the output',
    size: float | None = None,
) -> None:
    found, expected = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    scale = max(np.abs(expected).max(), 1e-6) if size is None else size
    error = np.abs(found - expected).max() / scale
    assert error <= tolerance, f'{what} differs by {error:.3g} of its size, more than {tolerance}'


def _shard(leaf: jax.Array, mesh: Mesh, axis: int | None = None) -> jax.Array:
    """Over the given axis, or over the last one that the devices divide."""
    fitting = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0]
    chosen = axis if axis is not None else (fitting[-1] if fitting else None)
    spec = PartitionSpec(*('data' if i == chosen else None for i in range(leaf.ndim)))
    return jax.device_put(leaf, NamedSharding(mesh, spec))


def _flops(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    analysis = jax.jit(function).lower(*args, **kwargs).compile().cost_analysis() or {}
    return float(analysis['flops'])
