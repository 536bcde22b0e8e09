"""Saves that are whole or not there: kills, full disks, links, and writers beside readers."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from peftjax.interop.files import exchange, whole

TARGETS = r'layers_\d+/self_attn/(q|v)_proj'


def put_text(folder: Path, text: str) -> None:
    """A save of two files that must have the same content."""
    with whole.new_folder(folder, {'a', 'b'}.__contains__) as new:
        for name in 'ab':
            whole.write_text(new / name, text)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_or_a_folder_is_left_as_it_was_where_the_writer_fails(tmp_path):
    put_text(tmp_path / 'save', 'old')
    whole_file = tmp_path / 'file'
    whole_file.write_text('old')
    with pytest.raises(ZeroDivisionError), whole.new_folder(tmp_path / 'save', bool) as new:
        whole.write_text(new / 'a', str(1 / 0))
    with pytest.raises(ZeroDivisionError), whole.new_file(whole_file) as new:
        new.write_text('half')
        new.write_text(str(1 / 0))
    assert (tmp_path / 'save/a').read_text() == whole_file.read_text() == 'old'
    assert names_in(tmp_path) == ['file', 'save']


def _no_exchange(monkeypatch):
    class Without:
        def renameat2(self, *args):
            return -1

    monkeypatch.setattr(exchange.ctypes, 'CDLL', lambda *args, **kwargs: Without())
    monkeypatch.setattr(exchange.ctypes, 'get_errno', lambda: errno.EINVAL)


@pytest.mark.parametrize('exchanges', [True, False])
def test_other_files_and_folders_stay_beside_a_save(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        _no_exchange(monkeypatch)
    folder = tmp_path / 'save'
    put_text(folder, 'old')
    (folder / 'README.md').write_text('mine')
    (folder / 'notes').mkdir()
    (folder / 'notes/first').write_text('mine too')
    (folder / 'link').symlink_to('README.md')
    with whole.new_folder(folder, {'a', 'b'}.__contains__) as new:
        whole.write_text(new / 'a', 'new')
    assert names_in(folder) == ['README.md', 'a', 'link', 'notes']  # b is of the older version
    assert (folder / 'a').read_text() == 'new' and (folder / 'link').read_text() == 'mine'
    assert (folder / 'notes/first').read_text() == 'mine too'
    assert names_in(tmp_path) == ['save']


@pytest.mark.parametrize('exchanges', [True, False])
@pytest.mark.parametrize('after', [False, True])
def test_what_others_do_to_their_files_during_a_save_stays(tmp_path, monkeypatch, exchanges, after):
    if not exchanges:
        _no_exchange(monkeypatch)
    folder, other = tmp_path / 'save', tmp_path / 'other'
    names = 'replaced written appended deleted kept renamed'.split()
    put_text(folder, 'old')
    for name in names:
        (folder / name).write_text('before')
    for name in ('link', 'gone'):
        (folder / name).symlink_to('kept')
    (folder / 'notes').mkdir()
    (folder / 'notes/first').write_text('first')

    def meddle():
        other.write_text('after')
        os.replace(other, folder / 'replaced')
        (folder / 'written').write_text('after')
        with (folder / 'appended').open('a') as file:
            file.write(' after')
        (folder / 'deleted').unlink()
        (folder / 'renamed').rename(folder / 'made')
        (folder / 'gone').unlink()
        other.symlink_to('written')
        os.replace(other, folder / 'link')
        (folder / 'notes').mkdir(exist_ok=True)
        (folder / 'notes/second').write_text('second')

    swap = exchange._exchange

    def swapping(new, target):
        if after:
            found = swap(new, target)
            meddle()
            return found
        meddle()
        return swap(new, target)

    monkeypatch.setattr(exchange, '_exchange', swapping)
    put_text(folder, 'new')
    files = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    assert files == {
        'a': 'new',
        'b': 'new',
        'replaced': 'after',
        'written': 'after',
        'appended': 'before after',
        'kept': 'before',
        'made': 'before',
        'link': 'after',
    }
    assert names_in(folder / 'notes') == ['first', 'second'] and names_in(tmp_path) == ['save']


def test_a_folder_that_cannot_be_moved_is_kept_and_named(tmp_path, monkeypatch):
    folder, rename = tmp_path / 'save', os.rename
    put_text(folder, 'old')
    for name in ('data', 'mounted', 'notes'):
        (folder / name).mkdir()
        (folder / name / 'file').write_text(name)

    def renaming(source, target):
        if Path(source).name == 'mounted':
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(source))
        rename(source, target)

    monkeypatch.setattr(os, 'rename', renaming)
    with pytest.raises(OSError, match='what could not be moved is in ') as caught:
        put_text(folder, 'new')
    [place] = tmp_path.glob('.save.*.new')
    assert str(place) in str(caught.value) and 'mounted' in str(caught.value)
    assert [path.read_text() for path in place.rglob('file')] == ['mounted']
    assert names_in(folder) == ['a', 'b', 'data', 'notes'] and (folder / 'a').read_text() == 'new'
    monkeypatch.setattr(os, 'rename', rename)
    monkeypatch.setattr(whole, '_STALE', -1.0)
    put_text(folder, 'newer')
    assert (folder / 'mounted/file').read_text() == 'mounted' and names_in(tmp_path) == ['save']


@pytest.mark.parametrize('moment', ['between the renames', 'after the exchange'])
def test_an_interrupt_in_the_exchange_loses_nothing(tmp_path, monkeypatch, moment):
    folder, rename = tmp_path / 'save', os.rename
    put_text(folder, 'old')
    (folder / 'notes').mkdir()
    (folder / 'notes/first').write_text('first')

    def interrupted(source, target):
        if Path(target) == folder and Path(source).name == 'new' and not folder.exists():
            raise KeyboardInterrupt
        rename(source, target)

    def stopped(*args):
        raise KeyboardInterrupt

    if moment == 'between the renames':
        _no_exchange(monkeypatch)
        monkeypatch.setattr(os, 'rename', interrupted)
    else:
        monkeypatch.setattr(exchange, '_give_changed', stopped)
    with pytest.raises(KeyboardInterrupt):
        put_text(folder, 'new')
    assert names_in(folder) == ['a', 'b', 'notes'] and names_in(folder / 'notes') == ['first']
    assert (folder / 'a').read_text() == ('old' if moment == 'between the renames' else 'new')
    assert names_in(tmp_path) == ['save']


@pytest.mark.parametrize('asked', ['ismount', 'access'])
def test_a_folder_that_could_not_move_is_refused_and_all_stays(tmp_path, monkeypatch, asked):
    folder = tmp_path / 'save'
    put_text(folder, 'old')
    (folder / 'data').mkdir()
    (folder / 'data/file').write_text('mine')
    if asked == 'ismount':
        monkeypatch.setattr(os.path, 'ismount', lambda path: path.name == 'data')
    else:
        monkeypatch.setattr(os, 'access', lambda path, mode: path.name != 'data')
    with pytest.raises(OSError, match='cannot move to a new version.*data'):
        put_text(folder, 'new')
    assert names_in(folder) == ['a', 'b', 'data'] and (folder / 'a').read_text() == 'old'
    assert (folder / 'data/file').read_text() == 'mine' and names_in(tmp_path) == ['save']


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_save_keeps_the_permissions_of_what_it_replaces(tmp_path):
    file, folder = tmp_path / 'file', tmp_path / 'save'
    file.write_text('old')
    file.chmod(0o600)
    put_text(folder, 'old')
    folder.chmod(0o700)
    (folder / 'a').chmod(0o640)
    plain = _mode(folder / 'b')
    with whole.new_file(file) as new:
        assert _mode(new.parent) == 0o700  # nobody else reads it before it is in its place either
        new.write_text('new')
    put_text(folder, 'new')
    assert (file.read_text(), (folder / 'a').read_text()) == ('new', 'new')
    assert (_mode(file), _mode(folder), _mode(folder / 'a')) == (0o600, 0o700, 0o640)
    assert _mode(folder / 'b') == plain
    empty = tmp_path / 'empty'
    empty.mkdir(mode=0o2770)
    empty.chmod(0o2770)
    put_text(empty, 'new')
    assert _mode(empty) == 0o2770


def test_permissions_of_a_group_are_not_given_to_another(tmp_path, monkeypatch):
    older, new = tmp_path / 'older', tmp_path / 'new'
    older.write_text('')
    new.write_text('')
    older.chmod(0o664)
    os.chown(older, -1, os.getgid())
    whole.permit_alike(new, older)
    assert _mode(new) == 0o664

    def refused(*args):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    about = Path.stat

    def of_another_group(self, **kwargs):
        found = about(self, **kwargs)
        if self != older:
            return found
        return os.stat_result((*found[:5], found.st_gid + 1, *found[6:10]))

    monkeypatch.setattr(os, 'chown', refused)
    monkeypatch.setattr(Path, 'stat', of_another_group)
    whole.permit_alike(new, older)
    monkeypatch.undo()
    assert _mode(new) == 0o604


def test_a_folder_that_may_not_be_written_to_is_refused_before_the_work(tmp_path, monkeypatch):
    put_text(tmp_path / 'save', 'old')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(PermissionError, match='save'), whole.new_folder(tmp_path / 'save', bool):
        raise AssertionError('it was given a folder')


def test_tensors_may_be_read_by_whoever_reads_other_files(tmp_path):
    whole.write_tensors(tmp_path / 'a.safetensors', {'x': np.ones(2)})
    whole.write_text(tmp_path / 'a.json', '{}')
    modes = [(tmp_path / name).stat().st_mode for name in ('a.safetensors', 'a.json')]
    assert modes[0] == modes[1]
    with pytest.raises(FileExistsError):
        whole.write_tensors(tmp_path / 'a.safetensors', {'x': np.ones(2)})
