"""Small models, adapters and comparisons for the tests of the core."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import peftjax

KEY = jax.random.key(0)
X = jnp.arange(8.0).reshape(2, 4) / 8


@functools.cache
def mlp() -> peftjax.Model:
    return peftjax.testing.tiny_mlp()


def moved(
    transform: peftjax.PeftTransform, model: peftjax.Model, seed: int = 0, size: float = 0.5
) -> tuple[Any, peftjax.Frozen]:
    """`init` of a transform, with an adapter in which nothing is zero."""
    adapter, frozen = transform.init(KEY, model)
    return peftjax.testing.perturb(adapter, seed, size), frozen


def function(f: Callable[..., Any], *inputs: jax.Array, **params: jax.Array) -> peftjax.Model:
    """`f(params, *inputs)` as a model."""
    return peftjax.wrap(f, params, inputs)


def unfollowed(p: Any, x: jax.Array) -> jax.Array:
    """Two leaves, of which the last is normalised before its use and so cannot be followed."""
    return (x @ p['w']) @ (p['top'] / jnp.linalg.norm(p['top']))


def assert_close(mine: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Every leaf of `mine` within `tolerance` of the largest value of the leaf of `theirs`."""
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        size = max(float(jnp.abs(b).max(initial=0.0)), 1e-6)
        assert float(jnp.abs(a - b).max(initial=0.0)) <= tolerance * size


def assert_raises(kind: type[Exception], act: Callable[[], object], *said: str) -> None:
    """`act` raises `kind`, and its message holds every one of `said`."""
    with pytest.raises(kind) as caught:
        act()
    missing = [words for words in said if words not in str(caught.value)]
    assert not missing, f'{missing} is not in: {caught.value}'
