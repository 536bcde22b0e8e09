"""The binding on every structure of the table: what it finds, and that both routes agree."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import peftjax
from tests.structures import TABLE, Structure
from tests.structures.entry import normal_like

KEY = jax.random.key(11)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision('highest'):
        yield


@functools.cache
def built(row: Structure):
    """(module, params, args, kwargs, model) of a row."""
    module, params, inputs = row.build()
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    return module, params, args, kwargs, peftjax.wrap(module, params, inputs)


def plain(row: Structure):
    """What the unwrapped model returns."""
    module, params, args, kwargs, _ = built(row)
    if not isinstance(module, nnx.Module):
        apply = module.apply if isinstance(module, nn.Module) else module
        return jax.jit(lambda params: apply(params, *args, **kwargs))(params)
    twin = nnx.clone(module)
    mutable = kwargs.get('mutable', False)
    output = twin(*args, **{name: value for name, value in kwargs.items() if name != 'mutable'})
    return (output, nnx.split(twin, nnx.Param, ...)[2]) if mutable else output


@functools.cache
def adapted(row: Structure):
    """(transform, fresh adapter, one of random values, frozen) on every leaf that it may adapt."""
    tx = peftjax.lora(rank=2, alpha=3.0, targets=row.targets)
    fresh, frozen = tx.init(KEY, built(row)[4])
    return tx, fresh, normal_like(fresh), frozen


def scalar(outputs) -> jax.Array:
    """A number that depends on every float of the outputs."""
    floats = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    cotangents = normal_like(floats)
    products = [
        (leaf * other).sum().astype(jnp.float32)
        for leaf, other in zip(floats, cotangents, strict=True)
    ]
    return sum(products, jnp.zeros(()))


def with_slope(route, row: Structure):
    """`adapter -> (outputs, derivative by the adapter)`, compiled.

    The derivative is the gradient, or where the model has none in reverse the slope along ones.
    """

    def loss(adapter):
        outputs = route(adapter)
        return scalar(outputs), outputs

    def reverse(adapter):
        (_, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(adapter)
        return outputs, gradient

    def forward(adapter):
        ones = jax.tree.map(jnp.ones_like, adapter)
        _, slope, outputs = jax.jvp(loss, (adapter,), (ones,), has_aux=True)
        return outputs, slope

    return jax.jit(reverse if row.reverse else forward)


@functools.cache
def routes(row: Structure):
    """Outputs and slopes by the rules and by the merged weights."""
    _, _, args, kwargs, model = built(row)
    tx, _, _, frozen = adapted(row)
    predict = peftjax.adapt(model, tx)

    def by_rules(adapter):
        return predict(adapter, frozen, *args, **kwargs)

    def by_merging(adapter):
        return model.apply(tx.merge(adapter, frozen), *args, **kwargs)

    return with_slope(by_rules, row), with_slope(by_merging, row)


def assert_close(actual, expected, tolerance: float):
    """Same structure, and every leaf within `tolerance` of the largest value of `expected`."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves_with_path(expected), strict=True)
    for got, (path, want) in pairs:
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        if jnp.issubdtype(want.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        scale = np.abs(want).max(initial=1e-6)
        error = np.abs(got - want).max(initial=0.0) / scale
        assert error <= tolerance, f'{jax.tree_util.keystr(path)}: relative error {error:.1e}'


def sites_are_exactly_those_expected(row: Structure):
    sites = built(row)[4].sites.weights
    reasons = {path: site.reason for path, site in sites.items() if site.layout is None}
    assert set(sites) - set(reasons) == row.adapted
    assert set(reasons) == set(row.refused)
    assert not {path: why for path, why in reasons.items() if row.refused[path] not in why}
    assert all(reasons.values()) and not any(sites[path].reason for path in row.adapted)


def fresh_adapter_changes_nothing(row: Structure):
    outputs, _ = routes(row)[0](adapted(row)[1])
    assert_close(outputs, plain(row), row.tolerance)


def adapted_equals_merged(row: Structure):
    by_rules, by_merging = routes(row)
    _, fresh, drawn, _ = adapted(row)
    outputs, slope = by_rules(drawn)
    expected, expected_slope = by_merging(drawn)
    assert_close(outputs, expected, row.tolerance)
    assert_close(slope, expected_slope, 5 * row.tolerance)
    change = abs(scalar(expected) - scalar(by_merging(fresh)[0]))
    assert change > 1e-4, 'the random adapter changes nothing, so that this row shows nothing'


def refused_leaf_raises_with_path_and_reason(row: Structure):
    model = built(row)[4]
    for path in row.refused:
        tx = peftjax.lora(rank=1, targets=re.escape(path))
        with pytest.raises(peftjax.TargetError) as raised:
            tx.init(KEY, model)
        assert path in str(raised.value)
        assert model.sites.weights[path].reason in str(raised.value)


def materialized_equals_merged(row: Structure):
    _, _, args, kwargs, model = built(row)
    targets = tuple(map(re.escape, row.refused.keys() - row.vectors))
    tx = peftjax.lora(rank=1, targets=targets, materialize=True)
    fresh, frozen = tx.init(KEY, model)
    adapter = normal_like(fresh)
    predict = peftjax.adapt(model, tx)
    outputs = jax.jit(lambda adapter: predict(adapter, frozen, *args, **kwargs))(adapter)
    merged = jax.jit(tx.merge)(adapter, frozen)
    expected = jax.jit(lambda params: model.apply(params, *args, **kwargs))(merged)
    assert_close(outputs, expected, row.tolerance)


def vectors_are_not_materialized(row: Structure):
    for path in row.vectors:
        tx = peftjax.lora(rank=1, targets=re.escape(path), materialize=True)
        with pytest.raises(peftjax.TargetError, match=re.escape(path)):
            tx.init(KEY, built(row)[4])


LAWS = {
    sites_are_exactly_those_expected: lambda row: True,
    fresh_adapter_changes_nothing: lambda row: row.adapted,
    adapted_equals_merged: lambda row: row.adapted,
    refused_leaf_raises_with_path_and_reason: lambda row: row.refused,
    materialized_equals_merged: lambda row: row.refused.keys() - row.vectors,
    vectors_are_not_materialized: lambda row: row.vectors,
}


def _cases():
    """Every law on every row that it speaks of, the laws of a row one after another.

    So one process has them all in nearly every case, and builds the row and compiles it once.
    """
    for row in TABLE:
        for law, speaks_of in LAWS.items():
            if speaks_of(row):
                yield pytest.param(row, law, id=f'{row.identifier}-{law.__name__}')


@pytest.mark.sampled
@pytest.mark.parametrize(('row', 'law'), list(_cases()))
def test_every_law_holds_on_every_structure(row: Structure, law):
    law(row)


def test_table_has_distinct_rows():
    assert len({row.identifier for row in TABLE}) == len(TABLE) >= 40
