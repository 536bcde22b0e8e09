"""Checkpoints of runs that were damaged, or that the system cannot read for a while."""

import errno
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.train.checkpoints import Checkpoints, CheckpointsError
from peftjax.train.step import TrainState

CONFIG = {'model': {'source': 'a/b'}, 'lr': 1e-3, 'methods': ('lora',)}


def _state(step):
    return TrainState(
        step=jnp.int32(step),
        adapter={'a': jnp.arange(6.0) + step, 'b': jnp.full((2, 3), step, jnp.bfloat16)},
        opt_state=(jnp.ones(3) * step,),
        key=jax.random.key(step),
    )


def _about(step):
    return {'data': {'next_index': step}, 'engine': {}, 'members': [{'scores': {'loss': 0.5}}]}


def _opened(folder, said=None, config=CONFIG):
    return Checkpoints(folder, config, 'base', say=[].append if said is None else said.append)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A work folder with the checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp('saved')
    checkpoints = _opened(folder)
    for step in (4, 8):
        checkpoints.save(_state(step), _about(step))
    checkpoints.close()
    return folder


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr('peftjax.train.checkpoints._PAUSES', (0.0, 0.0))


def _assert_is(restored, step):
    wanted = _state(step)
    for found, leaf in zip(
        jax.tree.leaves(restored.state._replace(key=None)),
        jax.tree.leaves(wanted._replace(key=None)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, leaf)
    assert (jax.random.key_data(restored.state.key) == jax.random.key_data(wanted.key)).all()
    assert restored.about == _about(step)


def _files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def _damage(path, how):
    if how == 'lost':
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    if how == 'flipped':
        content[place] ^= 1
    elif how == 'zeros':
        content[:] = bytes(len(content))
    path.write_bytes(content[:place] if how == 'cut' else content)


@pytest.mark.sampled
@pytest.mark.parametrize('how', ['cut', 'flipped', 'zeros', 'lost'])
def test_damage_of_any_file_is_harmless_or_falls_back(saved, tmp_path, how):
    back = 0
    for number, name in enumerate(_files(saved / 'checkpoints/8')):
        copy, said = tmp_path / str(number), []
        shutil.copytree(saved, copy)
        _damage(copy / 'checkpoints/8' / name, how)
        checkpoints = _opened(copy, said)
        restored = checkpoints.restore(_state(0))
        step = int(restored.state.step)
        _assert_is(restored, step)
        assert (copy / 'damaged/8').is_dir() == (step == 4) == bool(said), name
        assert step == 8 or 'step 8 is damaged' in said[0] and 'goes on from step 4' in said[0]
        back += step == 4
        checkpoints.close()
    assert back >= 4  # some files hold nothing that is read


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('file', 'change'),
    [
        ('about/metadata', lambda about: about['data'].update(next_index=7)),
        ('about/metadata', lambda about: about['data'].pop('next_index')),
        ('about/metadata', lambda about: about['members'][0]['scores'].update(loss=0.25)),
        ('config/metadata', lambda config: config.update(lr=1e-2)),
        ('marks/metadata', lambda marks: marks.update(base='other')),
        ('marks/metadata', lambda marks: marks.pop('digest')),
    ],
)
def test_a_change_of_what_stands_beside_the_arrays_is_damage(saved, tmp_path, file, change):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    _edit(tmp_path / 'checkpoints/8' / file, change)
    checkpoints = _opened(tmp_path)
    _assert_is(checkpoints.restore(_state(0)), 4)
    checkpoints.close()


def test_no_whole_checkpoint_is_the_same_error_at_every_start(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for step in (4, 8):
        _damage(tmp_path / f'checkpoints/{step}/about/metadata', 'zeros')
    for _ in range(2):
        checkpoints = _opened(tmp_path)
        with pytest.raises(CheckpointsError, match=r'is whole \(step 8: .*; step 4: '):
            checkpoints.restore(_state(0))
        checkpoints.close()
    assert not (tmp_path / 'damaged').exists()
    # Someone moved them away: a run from step 0 would look like one that goes on.
    (tmp_path / 'checkpoints').rename(tmp_path / 'damaged')
    with pytest.raises(CheckpointsError, match='would start from step 0'):
        _opened(tmp_path)


def _failing(times, error):
    left = [times]

    def patched(read):
        def call(self, *args, **kwargs):
            if left[0]:
                left[0] -= 1
                raise error
            return read(self, *args, **kwargs)

        return call

    return patched


@pytest.mark.parametrize('error', [OSError(errno.EIO, 'Input/output error'), MemoryError('full')])
def test_a_read_error_that_passes_is_tried_again_and_told(saved, tmp_path, monkeypatch, error):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    said = []
    checkpoints = _opened(tmp_path, said)
    manager = type(checkpoints._manager)
    with monkeypatch.context() as patch:
        patch.setattr(manager, 'restore', _failing(2, error)(manager.restore))
        _assert_is(checkpoints.restore(_state(0)), 8)
    assert len(said) == 1 and 'step 8 could be read only when it was tried again' in said[0]
    with monkeypatch.context() as patch:
        patch.setattr(manager, 'restore', _failing(99, error)(manager.restore))
        with pytest.raises(CheckpointsError, match='Nothing was moved'):
            checkpoints.restore(_state(0))
    assert not (tmp_path / 'damaged').exists() and checkpoints.steps == [4, 8]
    checkpoints.close()


def test_a_file_that_the_system_cannot_read_is_no_damage(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    file = tmp_path / 'checkpoints/8/about/metadata'
    file.write_text('{')  # what a reader makes of a file that it gets in part
    opened = Path.open

    def refusing(self, *args, **kwargs):
        if self == file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, 'open', refusing)
    checkpoints = _opened(tmp_path)
    with pytest.raises(CheckpointsError, match='Permission denied'):
        checkpoints.restore(_state(0))
    assert not (tmp_path / 'damaged').exists()
    checkpoints.close()


def test_other_settings_are_told_by_a_whole_checkpoint_alone(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    checkpoints = _opened(tmp_path, config={**CONFIG, 'lr': 1e-2})
    with pytest.raises(ValueError, match=r'lr: 0\.001 -> 0\.01'):
        checkpoints.restore(_state(0))
    checkpoints.close()


def test_a_checkpoint_with_the_number_of_one_that_is_gone_is_flushed(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    flushed = []
    monkeypatch.setattr(
        'peftjax.train.checkpoints.flush', lambda folder: flushed.append(int(folder.name))
    )
    checkpoints = _opened(tmp_path)
    checkpoints.wait()
    for back in (4, None):
        checkpoints.go_back(back)
        checkpoints.save(_state(8), _about(8))
        checkpoints.wait()
    checkpoints.close()
    assert flushed == [8, 4, 8, 8]
