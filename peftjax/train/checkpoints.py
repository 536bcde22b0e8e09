"""Checkpoints of a run: the adapter and everything that is needed to resume, but never the base.

A checkpoint holds the adapter, the optimiser's state, the step, the PRNG key, the position in the
data, scores, and all settings. It identifies the base by its name in the settings and by a
fingerprint of its values. One digest covers all of this, so a damaged checkpoint is never used.
"""

import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from peftjax.interop.files.disk import flush, flush_one
from peftjax.train.data_marks import changes
from peftjax.train.fingerprint import fingerprint
from peftjax.train.flat_state import flatten, unflatten
from peftjax.train.step import TrainState
from peftjax.train.wholeness import (
    as_json,
    beside,
    differences,
    digest,
    first_line,
    passing,
    unreadable,
)

# Seconds before a checkpoint that could not be read is read again.
_PAUSES = 0.1, 1.0


class CheckpointsError(RuntimeError):
    """Checkpoints cannot be written, or none of them can be read."""


class Restored(NamedTuple):
    """The content of a checkpoint: the arrays of the state, and the values saved beside them."""

    state: TrainState
    about: dict[str, Any]


class Checkpoints:
    """The newest `keep` checkpoints of one work folder.

    A checkpoint is written while training continues, into a folder that gets its name when it is
    complete. It is flushed to the disk before the next one begins, so that one survives a power
    cut. The state is a flat `{path: array}`, which needs no class of this library. One digest
    covers arrays, position, scores and settings. If it differs, a file was cut or changed later:
    the damaged checkpoint is moved to `damaged/`, and the run resumes from the one before. A
    checkpoint that the system cannot read at the moment is never moved.
    """

    def __init__(
        self,
        workdir: Path,
        config: Mapping[str, Any],
        base: str,
        keep: int = 2,
        *,
        data: Mapping[str, Any] | None = None,
        allow_changed_data: bool = False,
        say: Callable[[str], None] = warnings.warn,
    ):
        """Opens a work folder.

        Args:
            workdir: the folder of the run.
            config: all settings, as JSON holds them.
            base: fingerprint of everything that is not trained.
            keep: number of checkpoints that stay.
            data: digests of the data that the run reads, by name; see `data_marks`.
            allow_changed_data: whether the run may resume from a checkpoint of other data.
            say: called with a message if a checkpoint is damaged, or is read only at a later try.

        Raises:
            CheckpointsError: the folder has damaged checkpoints and no others.
        """
        self._config, self._base, self._say = as_json(config), base, say
        self._data, self._allow_changed_data = as_json(data or {}), allow_changed_data
        self._flushed: int | None = None
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
        if self.latest_step is None and any(self._damaged.glob('[0-9]*')):
            raise CheckpointsError(
                f'{self._folder} holds no checkpoint, and {self._damaged} holds damaged ones: the '
                'run would start from step 0. Put a whole one back, or choose another --workdir'
            )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all kept checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, about: Mapping[str, Any]) -> None:
        """Writes a checkpoint named by the state's step, unless the newest one is of that step.

        Args:
            state: may be donated to a step right afterwards.
            about: values that JSON can hold: the position in the data, scores.

        Raises:
            CheckpointsError: this or an earlier one could not be written, e.g. on a full disk.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        flat = jax.block_until_ready(jax.tree.map(jnp.copy, flatten(state)))
        about, state_mark = as_json(about), fingerprint(flat)
        marks: dict[str, Any] = {'base': self._base, 'data': self._data}
        marks['digest'] = digest(self._config, about, marks, state_mark)
        self.wait()
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(flat),
                    about=ocp.args.JsonSave(about),
                    marks=ocp.args.JsonSave(marks),
                    config=ocp.args.JsonSave(self._config),
                ),
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Waits until every saved checkpoint is complete and on the disk.

        Raises:
            CheckpointsError: see `save`.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            step = self.latest_step
            if step is not None and step != self._flushed and jax.process_index() == 0:
                flush(self._folder / str(step))
                flush_one(self._folder)
                self._flushed = step
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self, like: TrainState) -> Restored:
        """Reads the newest whole checkpoint into the structure and the shardings of `like`.

        Raises:
            ValueError: it was written under other settings, on another base or on other data.
            CheckpointsError: no checkpoint is whole, or the system cannot read one.
        """
        reasons: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                found = self._read(step, like)
            except _NotOursError as error:
                raise ValueError(str(error)) from None
            except _DamagedError as error:
                reasons[step] = str(error)
                continue
            for damaged, reason in reasons.items():
                self._set_aside(damaged)
                self._say(
                    f'the checkpoint of step {damaged} is damaged ({reason}): it is in '
                    f'{self._damaged} now, and the run goes on from step {step}'
                )
            return found
        said = '; '.join(f'step {step}: {reason}' for step, reason in reasons.items())
        raise CheckpointsError(
            f'no checkpoint in {self._folder} is whole ({said}); start again in another --workdir, '
            'or put whole ones back'
        )

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            target = self._damaged / str(step)
            shutil.rmtree(target, ignore_errors=True)
            (self._folder / str(step)).rename(target)
        multihost_utils.sync_global_devices(f'step {step} is damaged')
        self._manager.reload()

    def _read(self, step: int, like: TrainState) -> Restored:
        """Reads a checkpoint, and tries again after a pause if that fails.

        Raises:
            _DamagedError: all its files can be read, but they are not what was saved.
            CheckpointsError: the system cannot read a file.
        """
        reason, failure = '', None
        for pause in (*_PAUSES, None):
            try:
                found = self._restore(step, like)
            except _NotOursError:
                raise
            except Exception as error:  # noqa: BLE001 (what a damaged file raises has no class)
                reason, failure = first_line(error), error
            else:
                if reason:
                    self._say(f'step {step} could be read only when it was tried again: {reason}')
                return found
            if pause is not None:
                time.sleep(pause)
        why = passing(failure) or unreadable(self._folder / str(step))
        if why is not None:
            raise CheckpointsError(
                f'the checkpoint of step {step} in {self._folder} cannot be read: {why}. '
                'Nothing was moved or changed; start again when it can be read'
            )
        raise _DamagedError(reason)

    def _restore(self, step: int, like: TrainState) -> Restored:
        read = self._manager.restore
        parts = ocp.args.JsonRestore()
        saved = read(step, args=ocp.args.Composite(config=parts, about=parts, marks=parts))
        config, about, marks = saved['config'], saved['about'], saved['marks']
        whole = marks.pop('digest')
        if whole['beside'] != beside(config, about, marks):
            raise ValueError('the values beside its arrays are not those that were saved')
        self._check_is_ours(step, config, marks)
        flat = flatten(like)
        state = read(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(flat)))['state']
        if whole['all'] != digest(config, about, marks, fingerprint(state))['all']:
            raise ValueError('its arrays are not those that were saved')
        return Restored(unflatten(state, like), about)

    def _check_is_ours(self, step: int, config: dict[str, Any], marks: Mapping[str, Any]) -> None:
        """Raises `_NotOursError` for a checkpoint of other settings, another base or other data."""
        changed = differences(config, self._config)
        if changed:
            raise _NotOursError(
                f'the work folder holds step {step} of a run with other settings '
                f'({"; ".join(changed)}): choose another --workdir, or give the same settings'
            )
        base = marks['base']
        if base != self._base:
            raise _NotOursError(
                f'the work folder holds step {step} of a run on another base: the values of '
                f'{self._name} have the fingerprint {self._base}, but the run was trained on '
                f'values with {base}. Choose another --workdir, or give the same base'
            )
        if others := changes(marks['data'], self._data):
            text = f'the work folder holds step {step} of a run on other data ({"; ".join(others)})'
            if not self._allow_changed_data:
                raise _NotOursError(
                    f'{text}: put the old data back, choose another --workdir, or give '
                    '--allow-changed-data to go on with the new data'
                )
            self._say(f'{text}; it goes on with the new data, as asked')

    def go_back(self, step: int | None) -> None:
        """Removes the checkpoints that are newer than a step; None removes all of them."""
        for each in self.steps:
            if step is None or each > step:
                self._manager.delete(each)
        self._flushed = None  # The next checkpoint may have the step of a removed one.

    def close(self) -> None:
        """Waits, and closes.

        Raises:
            CheckpointsError: see `save`.
        """
        self.wait()
        self._manager.close()

    def _unwritten(self, error: Exception) -> CheckpointsError:
        return CheckpointsError(
            f'a checkpoint could not be written to {self._folder}: {first_line(error)}. The '
            f'newest whole one is of step {self.latest_step}; start again with the same --workdir '
            'to go on from it'
        )


class _NotOursError(Exception):
    """A whole checkpoint of other settings, another base or other data."""


class _DamagedError(Exception):
    """A checkpoint that is not what was saved."""
