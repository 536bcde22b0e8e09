"""Fused attention against the plain route: times, memory, and errors against float32."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import peftjax
from peftjax.core.masks import Mask
from peftjax.models.attend import attend

NAMES = ('out', 'dq', 'dk', 'dv')


def compare(row: dict[str, Any]) -> dict[str, Any]:
    """Causal attention, forward and backward, by `attend`'s choice of a kernel and by 'plain'."""
    arrays = _arrays(row, jnp.bfloat16)
    exact = jax.jit(_both(_reference))(*(each.astype(jnp.float32) for each in arrays))
    result: dict[str, Any] = {}
    for name, implementation in (('chosen', None), ('plain', 'plain')):
        call = functools.partial(attend, mask=Mask(causal=True), implementation=implementation)
        compiled: Any = jax.jit(_both(call)).lower(*arrays).compile()
        found = jax.block_until_ready(compiled(*arrays))
        result[f'{name}_ms'] = 1e3 * _median(compiled, arrays, row['steps'])
        result[f'{name}_scratch_bytes'] = compiled.memory_analysis().temp_size_in_bytes
        result[f'{name}_errors'] = dict(zip(NAMES, _errors(found, exact), strict=True))
        result[f'{name}_kernels'] = peftjax.plan.kernels(compiled.as_text() or '')
    return result


def _arrays(row: dict[str, Any], dtype: Any) -> list[jax.Array]:
    """Query, key, value, and the gradient of the output."""
    heads, shared = row['heads'], row['shared']
    shapes = [(row['rows'], row['length'], each, row['width']) for each in (heads, shared, shared)]
    keys = jax.random.split(jax.random.key(3), 4)
    return [
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, [*shapes, shapes[0]], strict=True)
    ]


def _both(call: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """The output, and its gradients by query, key and value."""

    def both(query: Any, key: Any, value: Any, slope: Any) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(call, query, key, value)
        return (out, *pull(slope))

    return both


def _reference(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention by its definition, with all scores at once, at the highest precision."""
    batch, length, heads, width = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, width)
    with jax.default_matmul_precision('highest'):
        scores = jnp.einsum('btkgh,bskh->bkgts', grouped, key) * width**-0.5
        seen = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(seen[None, None, None], scores, -jnp.inf)
        out = jnp.einsum('bkgts,bskh->btkgh', jax.nn.softmax(scores, axis=-1), value)
    return out.reshape(batch, length, heads, width)


def _errors(found: Any, exact: Any) -> list[float]:
    """Relative errors in the Euclidean norm."""
    return [
        float(jnp.linalg.norm((a.astype(jnp.float32) - b).ravel()) / jnp.linalg.norm(b.ravel()))
        for a, b in zip(found, exact, strict=True)
    ]


def _median(compiled: Any, arrays: list[jax.Array], steps: int) -> float:
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)
