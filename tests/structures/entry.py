"""One row of the binding's table: a model structure and what the binding must find in it."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TABLE: list['Structure'] = []


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A tiny model, the leaves an adapter can be put on, and those it cannot and why.

    `vectors` are the refused leaves that no weight method takes, merged or not: vectors, integers.
    """

    name: str
    flavour: str
    build: Callable[[], tuple[Any, Any, Any]]
    adapted: frozenset[str]
    refused: Mapping[str, str]
    vectors: frozenset[str]
    tolerance: float
    reverse: bool

    @property
    def identifier(self) -> str:
        return f'{self.flavour}-{self.name}'

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(re.escape(path) for path in sorted(self.adapted))


def expand(text: str) -> list[str]:
    """'a/{k,b} c' -> ['a/k', 'a/b', 'c'], as a shell would."""
    done = []
    for word in text.split():
        found = re.search(r'\{([^{}]*)\}', word)
        if found is None:
            done.append(word)
            continue
        before, after = word[: found.start()], word[found.end() :]
        done += expand(' '.join(before + part + after for part in found[1].split(',')))
    return done


def structure(
    flavour: str,
    adapted: str = '',
    *,
    added: str = '',
    scaled: str = '',
    refused: Mapping[str, str] | None = None,
    vectors: str = '',
    tolerance: float = 1e-5,
    reverse: bool = True,
):
    """Registers the decorated builder under its own name.

    Args:
        flavour: 'linen', 'nnx' or 'function'.
        adapted: leaf paths that take a LoRA, braces expanded.
        added: vectors refused because they are added to something (biases).
        scaled: vectors refused because they are multiplied elementwise (scales).
        refused: other leaf paths that are refused, with words their reason must contain.
        vectors: those of `refused` that are vectors or integers.
        tolerance: largest difference between the routes, relative to the largest value.
        reverse: whether the plain model can be differentiated in reverse (a while loop cannot).
    """
    reasons = dict.fromkeys(expand(added), 'it enters add')
    reasons |= dict.fromkeys(expand(scaled), 'it enters mul')
    no_matrices = frozenset([*reasons, *expand(vectors)])
    for braces, reason in (refused or {}).items():
        reasons |= dict.fromkeys(expand(braces), reason)

    def register(build):
        name, leaves = build.__name__.strip('_'), frozenset(expand(adapted))
        TABLE.append(
            Structure(name, flavour, build, leaves, reasons, no_matrices, tolerance, reverse)
        )
        return build

    return register


def promoting(call: Callable[..., Any]) -> Callable[..., Any]:
    """A model that leans on JAX's promotion, as those in the wild do; what is around it may not."""

    @functools.wraps(call)
    def run(*args, **kwargs):
        with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
            return call(*args, **kwargs)

    return run


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Standard normal float32 values, drawn by NumPy: JAX would compile for every shape."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def tokens(*shape: int, high: int, seed: int = 0) -> jax.Array:
    """Integers in [0, high)."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, shape, np.int32))


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """A dict of scaled normal weights, one for each named shape."""
    return {
        name: normal(*shape, seed=seed + i + 1) / 2
        for i, (name, shape) in enumerate(shapes.items())
    }


def normal_like(tree: Any, scale: float = 0.5) -> Any:
    """Scaled normal values in the place of every array or `ShapeDtypeStruct`."""
    leaves, treedef = jax.tree.flatten(tree)
    drawn = [
        (normal(*leaf.shape, seed=i) * scale).astype(leaf.dtype) for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, drawn)
