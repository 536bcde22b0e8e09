"""Trees by path, and what identifies a model."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from peftjax.core import paths
from peftjax.core.errors import AdapterError
from peftjax.core.quantized import QuantizedArray
from peftjax.interop.errors import CheckpointError
from peftjax.interop.folder import arrays as files


def by_path(tree: Any) -> dict[str, Any]:
    """Every array of `tree` by its path.

    Raises:
        ValueError: two arrays whose paths read the same.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    found = {paths.join(path): leaf for path, leaf in leaves}
    if len(found) != len(leaves):
        names = [paths.join(path) for path, _ in leaves]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'two arrays have the path {twice!r}; rename a key of the adapter')
    return found


def check_alike(what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises `AdapterError` unless `found` has the paths and shapes of `expected`."""
    for path in [*expected, *found]:
        one, other = (_shape(tree.get(path)) for tree in (found, expected))
        if one != other:
            raise AdapterError(
                f'{what} has {path!r} of shape {one}, but this transform makes {other} for this '
                'model; was it made by another transform or for another model? To take one of '
                'several stacked adapters, write jax.tree.map(lambda leaf: leaf[0], adapter)'
            )


def _shape(leaf: Any) -> Any:
    return None if leaf is None else tuple(np.shape(leaf))


def fingerprint(params: Any) -> dict[str, dict[str, Any]]:
    """What identifies a model: shape, dtype, scheme and a checksum of a sample, of each leaf."""
    return {path: _of_leaf(leaf) for path, leaf in paths.flatten(params).items()}


def _of_leaf(leaf: Any) -> dict[str, Any]:
    if not hasattr(leaf, 'shape'):
        leaf = np.asarray(leaf)
    found = {
        'shape': list(leaf.shape),
        'dtype': str(leaf.dtype),
        'crc32': files.checksum(leaf),
    }
    return found | ({'scheme': repr(leaf.scheme)} if isinstance(leaf, QuantizedArray) else {})


def check_model(where: str, stored: Any, params: Any) -> None:
    """Raises `CheckpointError` unless `stored` is the fingerprint of `params`."""
    if not isinstance(stored, dict) or not all(isinstance(each, dict) for each in stored.values()):
        raise CheckpointError(f'{where}: "model" identifies no model')
    leaves = paths.flatten(params)
    for path in [*stored, *leaves]:
        if path not in leaves or path not in stored:
            which = 'this model has none' if path in stored else 'the saved one had none'
            raise CheckpointError(
                f'{where} was saved for another model: of {path!r} {which}'
                f'{paths.nearby(path, leaves if path in stored else stored)}'
            )
    for path, leaf in leaves.items():
        found, expected = _of_leaf(leaf), stored[path]
        if found == expected:
            continue
        told = [_told(each) for each in (expected, found)]
        numbers = ' with other numbers' if told[0] == told[1] else ''
        raise CheckpointError(
            f'{where} was saved for another model: {path!r} was {told[0]}, this model has '
            f'{told[1]}{numbers}'
        )


def _told(leaf: Mapping[str, Any]) -> str:
    kind = f' by {leaf["scheme"]}' if 'scheme' in leaf else ''
    return f'{leaf.get("shape")} {leaf.get("dtype")}{kind}'[:200]


def refill(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """`tree` with every leaf from `leaves`, by path."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[paths.join(path)], tree)
