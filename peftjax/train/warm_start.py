"""An adapter that was trained before, as the start of a run."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

import peftjax
from peftjax.core import paths
from peftjax.interop.folder import trees
from peftjax.interop.folder.read import read_arrays
from peftjax.train.settings import SettingsError


class WarmStart:
    """Puts the arrays of an earlier adapter into a fresh one, by their paths.

    `peftjax.save` or another library wrote the folder. The method of the new run must have the
    arrays that the folder holds. A new head of another shape starts afresh, as in LoRA's runs from
    an adapter of MNLI (arXiv:2106.09685, appendix D.1).

    Args:
        folder: with the adapter.
        model: the base of the new run.

    Raises:
        CheckpointError: files that are absent or corrupt.
        SettingsError: the adapter took a part of its base's weights, so it does not fit others;
            from the call, arrays that do not fit, by path.
    """

    def __init__(self, folder: str, model: peftjax.Model):
        self._where, self._head = folder, frozenset(model.fresh)
        if (Path(folder) / 'peftjax.json').is_file():
            held = read_arrays(folder)
            if held.starts_from == 'start':
                raise SettingsError(
                    f'{folder} holds an adapter that took a part of its base (PiSSA, OLoRA) and '
                    'fits no other; go on with its run, or merge it into the base'
                )
            arrays: dict[str, Any] = held.adapter
        else:
            arrays = trees.by_path(peftjax.load_adapter(folder, model).adapter)
        self._arrays = {_bare(path): np.asarray(array) for path, array in arrays.items()}
        if len(self._arrays) != len(arrays):
            raise SettingsError(f'{folder} holds two methods on one leaf; no run can start from it')

    def __call__(self, adapter: Any) -> Any:
        """The fresh adapter with the earlier arrays."""
        fresh = {_bare(path): leaf for path, leaf in trees.by_path(adapter).items()}
        for path, leaf in fresh.items():
            held = self._arrays.get(path)
            if held is not None and held.shape == leaf.shape or self._is_new(path):
                continue
            found = 'nothing' if held is None else f'shape {held.shape}'
            raise SettingsError(
                f'init_from {self._where} has {found} for {path!r}, of shape {leaf.shape} in this '
                'run; give the method and the rank that the folder was trained with'
            )
        lost = [path for path in self._arrays if path not in fresh and not self._is_new(path)]
        if lost:
            raise SettingsError(
                f'init_from {self._where} holds {lost[0]!r}, for which this run has no place; '
                'give the method that the folder was trained with'
            )

        def one(path: Any, leaf: jax.Array) -> jax.Array:
            name = _bare(paths.join(path))
            held = self._arrays.get(name)
            if held is None or held.shape != leaf.shape:
                return leaf
            return jax.numpy.asarray(held, leaf.dtype)

        return jax.tree_util.tree_map_with_path(one, adapter)

    def _is_new(self, path: str) -> bool:
        """Whether a path is of the head, which no checkpoint of the base held."""
        return any(path == leaf or path.startswith(f'{leaf}/') for leaf in self._head)


def _bare(path: str) -> str:
    """A path without the numbers of a chain: '0/1/layers/...' becomes 'layers/...'."""
    return re.sub(r'^(\d+/)+', '', path)
