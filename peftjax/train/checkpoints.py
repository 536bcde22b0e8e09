"""Checkpoints of a run: the adapter and what is needed to go on, never the base.

A checkpoint holds the adapter, the optimiser's state, the step, the PRNG key, the position in the
data, scores, and all settings; the base by its name in the settings and by a fingerprint of its
values.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from peftjax.train.fingerprint import fingerprint
from peftjax.train.step import TrainState

# Placement-only fields: they may change between save and restore.
_MAY_CHANGE = frozenset({'mesh'})


class CheckpointsError(RuntimeError):
    """Checkpoints that cannot be written, or of which none can be read."""


class Restored(NamedTuple):
    """What a run goes on from: its arrays, and what was saved beside them."""

    state: TrainState
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one work folder: the newest `keep`.

    They are written while training goes on, into a folder that gets its name when it is whole. The
    state is stored as a flat `{path: array}`, so that reading it back needs no pytree class of the
    library, with a fingerprint of its own: one whose files were cut or changed later is moved to
    `damaged/`, and the run goes on from the one before.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any], base: str, keep: int = 2):
        self._config, self._base = dict(config), base
        self._name = config.get('model', {}).get('source', 'the model')
        self._folder = (workdir / 'checkpoints').resolve()
        self._damaged = workdir / 'damaged'
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.LatestN(keep),
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all that are kept, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, about: Mapping[str, Any]) -> None:
        """Writes a checkpoint named by the state's step; one that is there already is kept.

        Args:
            state: may be donated to a step right afterwards.
            about: what JSON can hold: the position in the data, scores.

        Raises:
            CheckpointsError: this or an earlier one could not be written, on a full disk say.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        flat = jax.block_until_ready(jax.tree.map(jnp.copy, _flatten(state)))
        marks = {'base': self._base, 'state': fingerprint(flat)}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(flat),
                    about=ocp.args.JsonSave(dict(about)),
                    marks=ocp.args.JsonSave(marks),
                    config=ocp.args.JsonSave(self._config),
                ),
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Until all that was saved is whole.

        Raises:
            CheckpointsError: see `save`.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self, like: TrainState) -> Restored:
        """Reads the newest whole checkpoint into the structure and the shardings of `like`.

        Raises:
            ValueError: it was written under other settings, or on another base.
            CheckpointsError: none of those there is whole.
        """
        reasons = []
        for step in reversed(self.steps):
            try:
                return self._restore(step, like)
            except _NotOursError as error:
                raise ValueError(str(error)) from None
            except Exception as error:  # noqa: BLE001 (what a damaged file raises has no class)
                reasons.append(f'step {step}: {str(error).strip().splitlines()[0][:200]}')
            self._set_aside(step)
        raise CheckpointsError(
            f'no checkpoint in {self._folder} is whole ({"; ".join(reasons)}); they are in '
            f'{self._damaged} now. Start again in another --workdir, or put whole ones back'
        )

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            target = self._damaged / str(step)
            shutil.rmtree(target, ignore_errors=True)
            (self._folder / str(step)).rename(target)
        multihost_utils.sync_global_devices(f'step {step} is damaged')
        self._manager.reload()

    def _restore(self, step: int, like: TrainState) -> Restored:
        read = self._manager.restore
        json = ocp.args.JsonRestore()
        saved = read(step, args=ocp.args.Composite(config=json, about=json, marks=json))
        changed = differences(saved['config'], self._config)
        if changed:
            raise _NotOursError(
                f'the work folder holds step {step} of a run with other settings '
                f'({"; ".join(changed)}): choose another --workdir, or give the same settings'
            )
        if saved['marks']['base'] != self._base:
            raise _NotOursError(
                f'the work folder holds step {step} of a run on another base: the values of '
                f'{self._name} have the fingerprint {self._base}, those it '
                f'was trained on {saved["marks"]["base"]}. Choose another --workdir, or give the '
                'same base'
            )
        flat = _flatten(like)
        state = read(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(flat)))['state']
        if fingerprint(state) != saved['marks']['state']:
            raise ValueError('its arrays are not those that were saved')
        return Restored(_unflatten(state, like), saved['about'])

    def close(self) -> None:
        """Waits, and closes.

        Raises:
            CheckpointsError: see `save`.
        """
        self.wait()
        self._manager.close()

    def _unwritten(self, error: Exception) -> CheckpointsError:
        reason = str(error).strip().splitlines()[0][:300] or type(error).__name__
        return CheckpointsError(
            f'a checkpoint could not be written to {self._folder}: {reason}. The newest whole one '
            f'is of step {self.latest_step}; start again with the same --workdir to go on from it'
        )


class _NotOursError(Exception):
    """A whole checkpoint of something else."""


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """What differs between two nested configs, one text `name: old -> new` for each field.

    Where a run is placed is left out.

    Example:
        >>> differences({'a': {'b': 1}, 'c': 2}, {'a': {'b': 3}, 'c': 2})
        ['a.b: 1 -> 3']
    """
    found = []
    for name in sorted((old.keys() | new.keys()) - (set() if prefix else _MAY_CHANGE)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f'{prefix}{name}.')
        elif before != after:
            found.append(f'{prefix}{name}: {before!r} -> {after!r}')
    return found


def _flatten(state: TrainState) -> dict[str, Any]:
    raw = state._replace(key=jax.random.key_data(state.key))
    leaves, _ = jax.tree.flatten_with_path(raw)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _unflatten(flat: dict[str, Any], like: TrainState) -> TrainState:
    leaves, structure = jax.tree.flatten_with_path(like._replace(key=jax.random.key_data(like.key)))
    raw = structure.unflatten([flat[jax.tree_util.keystr(path)] for path, _ in leaves])
    return raw._replace(key=jax.random.wrap_key_data(raw.key))
