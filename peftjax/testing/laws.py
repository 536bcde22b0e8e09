"""The laws of methods."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax.core import paths
from peftjax.core.combine import chain
from peftjax.core.entries import Entry
from peftjax.core.errors import AdapterError, MergeError
from peftjax.core.frozen import Frozen
from peftjax.core.quantized import dequantize
from peftjax.core.summary import summary
from peftjax.testing.case import Case, scalar
from peftjax.testing.measures import assert_close, flops, product_shapes, shapes, sharded


def check(case: Case) -> None:
    """Runs every law of the contract.

    Raises:
      AssertionError: a law fails; the message names it, and says by how much.

    >>> case = peftjax.testing.Case(
    ...     make=lambda targets: peftjax.lora(rank=2, targets=targets), targets=r'hidden',
    ...     model=peftjax.testing.tiny_mlp(), inputs={'x': jnp.ones((8, 4))}, parameters=24)
    >>> check(case)
    """
    for name, law in LAWS.items():
        try:
            law(case)
        except AssertionError as error:
            raise AssertionError(f'law {name!r}: {error}') from error


def identity_at_init(case: Case) -> None:
    """A fresh adapter on its frozen base does not change the model's outputs."""
    if case.identity is None:
        return
    plain = case.apply(case.model.params, **case.inputs)
    adapter = case.fresh()
    assert_close(case.step(adapter).output, plain, case.identity + case.tolerance)


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
    assert shapes(merged) == shapes(params), 'merge changed a shape, dtype or the structure'


def routes_agree(case: Case) -> None:
    """The training route computes what the model computes with merged parameters."""
    if not case.mergeable:
        return
    adapter = case.moved()
    merged = case.apply(case.compiled_merged(adapter), **case.inputs)
    assert_close(case.step(adapter).output, merged, case.tolerance)


def gradients_agree(case: Case) -> None:
    """Gradients are finite, reach every leaf, and equal those of the merged route."""
    adapter = case.moved()
    gradients = paths.flatten(jax.device_get(case.step(adapter).gradient))
    for path, leaf in gradients.items():
        assert np.isfinite(leaf).all(), f'the gradient of {path} is not finite'
        assert np.any(leaf != 0), f'no gradient reaches {path}'
    if case.mergeable:
        theirs = paths.flatten(jax.device_get(case.by_merging(adapter)))
        size = max(float(np.abs(leaf).max()) for leaf in theirs.values())
        for path, leaf in gradients.items():
            assert_close(leaf, theirs[path], 10 * case.tolerance, path, size)


def init_is_abstract(case: Case) -> None:
    """`init` under `eval_shape`, even on abstract parameters, gives the same shapes and dtypes."""
    expected = shapes(case.init())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), case.model.params
    )
    for params in (case.model.params, abstract):
        model = case.model.replace(params=params)
        found = shapes(jax.eval_shape(case.transform.init, jax.random.key(0), model))
        assert found == expected, f'abstract init gives {found}, init gives {expected}'


def vmaps_over_keys(case: Case) -> None:
    """Two adapters from two keys run on one base in one program, each as it does alone."""
    keys = jax.random.split(jax.random.key(3), 2)
    each = case.frozen_axes()
    many = jax.jit(jax.vmap(case.transform.init, in_axes=(0, None), out_axes=(0, each)))
    adapters, frozen = many(keys, case.model)
    call = jax.vmap(lambda *both: case.call(*both, **case.inputs), in_axes=(0, each))
    together = jax.device_get(jax.jit(call)(adapters, frozen))
    for i, key in enumerate(keys):
        alone = case.step(*case.transform.init(key, case.model)).output
        assert_close(together[i], alone, case.tolerance)


def second_step_compiles_nothing(case: Case) -> None:
    """A second step, and a new adapter of the same shapes, reuse the program."""
    moved = case.step(case.fresh()).moved
    before = case._traces['step']
    case.step(moved)
    case.step(*case.init(seed=7))
    again = case._traces['step'] - before
    assert not again, f'steps on adapters of the same shape were traced {again} more times'


def sharding_keeps_numbers(case: Case) -> None:
    """A step with sharded batch and parameters gives the same numbers as a step without sharding.

    The mesh has all devices. A second step on the adapter of the first one must not trace again.
    """
    mesh = Mesh(np.array(jax.devices()), ('data',))
    replicated = NamedSharding(mesh, PartitionSpec())
    own = case.frozen()
    params = jax.tree.map(lambda leaf: sharded(leaf, mesh), own.params)
    frozen = Frozen(params, jax.device_put(own.own, replicated))
    inputs = {name: sharded(value, mesh, axis=0) for name, value in case.inputs.items()}
    adapter = case.moved()
    alone = paths.flatten(case.step(adapter).moved)
    before = case._traces['step']
    on_mesh = jax.jit(case._step, out_shardings=replicated)
    spread = on_mesh(jax.device_put(adapter, replicated), frozen, inputs).moved
    for path, leaf in paths.flatten(spread).items():
        assert_close(leaf, alone[path], case.tolerance, path)
    on_mesh(spread, frozen, inputs)
    assert case._traces['step'] == before + 1, 'a second step on the mesh was traced again'


def keys_are_stable(case: Case) -> None:
    """Adding a target changes no other initial value."""
    if case.fewer_targets is None:
        return
    fewer, _ = case.make(case.fewer_targets).init(jax.random.key(0), case.model)
    few, all_ = paths.flatten(fewer), paths.flatten(case.fresh())
    assert set(few) < set(all_), 'fewer_targets must match only some of the sites'
    for path, leaf in few.items():
        assert np.array_equal(leaf, all_[path]), f'{path} has other initial values'


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
    """The number of trained parameters is what the closed formula gives."""
    found = summary(case.transform, case.model).trainable
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(case.fresh()))
    assert found == size, f'summary counts {found}, the adapter holds {size}'
    if case.parameters is not None:
        assert found == case.parameters, f'{found} parameters, the formula gives {case.parameters}'


def dense_only_if_said(case: Case) -> None:
    """No product of a training step has the shape of a target kernel, unless the case says so.

    A product of this shape is the gradient of a frozen kernel, or a change of it that is formed.
    Square kernels are skipped, since other arrays may have their shape.
    """
    adapter = case.moved()
    rules = case.transform.rules(adapter, case.frozen().own)
    sites = (case.model.sites.weights.get(path) for path in rules)
    layouts = [site.layout for site in sites if site is not None and site.layout is not None]
    kernels = {(i, o) for layout in layouts if (i := layout.inputs) != (o := layout.outputs)}
    kernels |= {(o, i) for i, o in kernels}
    program = jax.make_jaxpr(jax.grad(lambda adapter: scalar(case.predict(adapter))))(adapter)
    found = {shape[-2:] for shape in product_shapes(program.jaxpr)} & kernels
    if case.dense:
        assert found or not kernels, 'no product has the shape of a kernel: write dense=False'
    else:
        assert not found, f'a training step has products of the shape of a kernel: {found}'


def forward_cost_matches(case: Case) -> None:
    """A forward pass adds at most the FLOPs of the closed formula plus 3 %, as compiled."""
    if case.forward_flops is None:
        return
    params = case.model.params
    plain = flops(case.apply, params, **case.inputs)
    adapter, frozen = case.init()
    # Dequantisation is a cost of the scheme, not of the method.
    whole = frozen._replace(params=dequantize(frozen.params))
    adapted = flops(case.call, adapter, whole, **case.inputs)
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
    assert shapes(loaded) == shapes(adapter), 'the loaded adapter has another structure'
    for (path, mine), theirs in zip(
        paths.flatten(adapter).items(), jax.tree.leaves(loaded), strict=True
    ):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes(), f'{path} differs'


def other_methods_are_refused(case: Case) -> None:
    """An adapter of another method raises AdapterError, in a call and in `merge`."""
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
        raise AssertionError('an adapter of another method was accepted')


def _is_entry(node: Any) -> bool:
    return isinstance(node, Entry)


def _of_another_method(node: Any) -> Any:
    return Entry('another', node, node.layout) if isinstance(node, Entry) else node


def check_composition(first: Case, second: Case) -> None:
    """Two methods on one model work as a chain, or refuse with a reason.

    Raises:
      AssertionError: the chain's routes disagree, or its refusal does not name the chain.
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
        assert_close(found, merged, both.tolerance)


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
