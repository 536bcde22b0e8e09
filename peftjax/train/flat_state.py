"""The state of a run as a flat `{path: array}`, which needs no class of the library."""

from typing import Any

import jax

from peftjax.train.step import TrainState


def flatten(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by path; the PRNG key is an array of numbers."""
    raw = state._replace(key=jax.random.key_data(state.key))
    leaves, _ = jax.tree.flatten_with_path(raw)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def unflatten(flat: dict[str, Any], like: TrainState) -> TrainState:
    """The state from the arrays of `flatten`, in the structure of `like`."""
    leaves, structure = jax.tree.flatten_with_path(like._replace(key=jax.random.key_data(like.key)))
    raw = structure.unflatten([flat[jax.tree_util.keystr(path)] for path, _ in leaves])
    return raw._replace(key=jax.random.wrap_key_data(raw.key))
