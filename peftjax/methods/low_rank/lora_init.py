"""Initial values of LoRA's factors: `(key, matrix, rank, scale) -> (A [in, r], B [r, out])`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry
from peftjax.core.model import Model
from peftjax.core.transform import PeftTransform

Factors = tuple[Float[jax.Array, 'in {rank}'], Float[jax.Array, '{rank} out']]


def kaiming(
    key: PRNGKeyArray, matrix: Inexact[jax.Array, 'in out'], rank: int, scale: float
) -> Factors:
    """`A ~ U(-1/sqrt(in), 1/sqrt(in))`, `B = 0`: the authors' code."""
    del scale
    inputs, outputs = matrix.shape
    bound = 1.0 / math.sqrt(inputs)
    a = jax.random.uniform(key, (inputs, rank), jnp.float32, -bound, bound)
    return a, jnp.zeros((rank, outputs))


def gaussian(
    key: PRNGKeyArray, matrix: Inexact[jax.Array, 'in out'], rank: int, scale: float
) -> Factors:
    """`A ~ N(0, 1/r^2)`, `B = 0`."""
    del scale
    inputs, outputs = matrix.shape
    return jax.random.normal(key, (inputs, rank)) / rank, jnp.zeros((rank, outputs))


def pissa(
    key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], rank: int, scale: float
) -> Factors:
    """`s A B` is the best approximation of `W` of that rank, its singular values shared evenly.

    Meng et al., PiSSA, 2024 (arXiv:2404.02948), equations 2 and 3.
    """
    del key
    left, values, right = jnp.linalg.svd(matrix.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(values[:rank] / scale)
    return left[:, :rank] * root[None], root[:, None] * right[:rank]


def olora(
    key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], rank: int, scale: float
) -> Factors:
    """`B` has orthonormal rows: with `W^T = Q R`, the first `r` of `Q` and `R`, transposed.

    Büyükakyüz, OLoRA, 2024 (arXiv:2406.01775), section 3.
    """
    del key, scale
    orthonormal, triangle = jnp.linalg.qr(matrix.astype(jnp.float32).T)
    return triangle[:rank].T, orthonormal[:, :rank].T


Initialiser = Callable[[PRNGKeyArray, Float[jax.Array, 'in out'], int, float], Factors]

FROM_NOTHING: dict[str, Initialiser] = {'kaiming': kaiming, 'gaussian': gaussian}
"""The starts with `A B = 0`."""

FROM_WEIGHT: dict[str, Initialiser] = {'pissa': pissa, 'olora': olora}
"""The starts from a part of the weight, which is then taken out of the frozen base."""


def starting_from(transform: PeftTransform, given: Mapping[str, Any]) -> PeftTransform:
    """`transform` with `A` as given by leaf path, in the dtype it would have had.

    Raises:
      ValueError: from `init`, a path that it does not adapt, or an array of another shape.
    """

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Entry]:
        adapter = dict(transform.start(key, model))
        for path, a in given.items():
            if path not in adapter:
                raise ValueError(
                    f'init gives A for {path!r}, which the targets do not cover'
                    f'{paths.nearby(path, adapter)}'
                )
            entry = adapter[path]
            if a.shape != entry['a'].shape:
                raise ValueError(
                    f'init gives A of shape {a.shape} {a.dtype} for {path!r}; this rank needs '
                    f'{entry["a"].shape}; write rank, or a rank_pattern for {path!r}, to fit'
                )
            adapter[path] = entry.replace(
                a=jnp.asarray(a, entry['a'].dtype), b=jnp.zeros_like(entry['b'])
            )
        return adapter

    return transform.replace(start=start)
