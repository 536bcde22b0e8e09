"""Checkpoints of a run: the adapter and what is needed to go on, never the base.

A checkpoint holds the adapter, the optimiser's state, the step, the PRNG key, the position in the
data, and the resolved config, which names the base.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from peftjax.training import TrainState


class Checkpoints:
    """The checkpoints of one work folder, the newest `keep` of them.

    The state is stored as a flat `{path: array}`, so that reading it back needs no pytree class of
    the library.
    """

    def __init__(self, workdir: Path, config: dict[str, Any], keep: int = 2):
        self._config = config
        self._manager = ocp.CheckpointManager(
            (workdir / 'checkpoints').resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data_position: dict[str, Any]) -> None:
        """Writes a checkpoint named by the state's step; one that is there already is kept."""
        step = int(state.step)
        if step == self.latest_step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_flatten(state)),
                data=ocp.args.JsonSave(data_position),
                config=ocp.args.JsonSave(self._config),
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads the newest checkpoint into the structure of `like`.

        Returns:
            The state, and the position in the data for the iterator's `set_state`.

        Raises:
            ValueError: the checkpoint was written under another config.
        """
        step = self.latest_step
        read_config = ocp.args.Composite(config=ocp.args.JsonRestore())
        saved = self._manager.restore(step, args=read_config)['config']
        changed = differences(saved, self._config)
        if changed:
            raise ValueError(
                f'the work folder holds step {step} of a run with another config '
                f'({"; ".join(changed)}): choose another --workdir, or give the same config'
            )
        flat = _flatten(like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(flat), data=ocp.args.JsonRestore()
            ),
        )
        return _unflatten(restored['state'], like), restored['data']

    def close(self) -> None:
        self._manager.close()


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """What differs between two nested configs, one text `name: old -> new` for each field.

    Example:
        >>> differences({'a': {'b': 1}, 'c': 2}, {'a': {'b': 3}, 'c': 2})
        ['a.b: 1 -> 3']
    """
    found = []
    for name in sorted(old.keys() | new.keys()):
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
