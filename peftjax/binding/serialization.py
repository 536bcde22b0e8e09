"""Registers the nodes of adapters with `flax.serialization`, which otherwise refuses them."""

from typing import Any

import jax
from flax import serialization

from peftjax.core import paths
from peftjax.core.entries import NODES
from peftjax.core.errors import AdapterError


def register() -> None:
    """Lets `flax.serialization` write and read adapters and their `frozen`."""
    for node in NODES:
        serialization.register_serialization_state(node, _state_of, _restored, override=True)


def _state_of(node: Any) -> dict[str, Any]:
    """The state of a node: its contents by name, under its label if it has one."""
    state = {name: serialization.to_state_dict(child) for name, child in _children(node).items()}
    label = getattr(node, 'label', None)
    return state if label is None else {label: state}


def _restored(node: Any, state: Any) -> Any:
    where = f'at {serialization.current_path()!r}'
    label = getattr(node, 'label', None)
    if label is not None:
        if list(state) != [label]:
            raise AdapterError(
                f'the state {where} is of {sorted(state)}, but this is an adapter of {label}; '
                'restore into an adapter of the same transform'
            )
        state = state[label]
    held = _children(node)
    if set(state) != set(held):
        raise AdapterError(
            f'the state {where} holds {sorted(state)}, but this adapter {sorted(held)}; restore '
            'into an adapter of the same transform'
        )
    found = {}
    for name, child in held.items():
        found[name] = serialization.from_state_dict(child, state[name], name)
        theirs, ours = (getattr(each, 'shape', None) for each in (found[name], child))
        if theirs != ours:
            raise AdapterError(
                f'the state {where} holds {name} of {theirs}, but this adapter of {ours}; restore '
                'into an adapter of the same transform'
            )
    structure = jax.tree.structure(node, is_leaf=lambda each: each is not node)
    return jax.tree.unflatten(structure, list(found.values()))


def _children(node: Any) -> dict[str, Any]:
    """The children of a pytree node."""
    found, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda each: each is not node)
    return {paths.join(path): child for path, child in found}
