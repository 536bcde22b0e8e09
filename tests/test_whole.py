"""Saves that are whole or not there: kills, full disks, links, and writers beside readers."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import peftjax
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files import exchange, whole
from peftjax.interop.files.steady import steadily
from tests import tiny_runs
from tests.saved_folders import MLP

TARGETS = r'layers_\d+/self_attn/(q|v)_proj'


def _text(folder: Path, text: str) -> None:
    """A save of two files that must have the same content."""
    with whole.new_folder(folder, {'a', 'b'}.__contains__) as new:
        for name in 'ab':
            whole.write_text(new / name, text)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_or_a_folder_is_left_as_it_was_where_the_writer_fails(tmp_path):
    _text(tmp_path / 'save', 'old')
    whole_file = tmp_path / 'file'
    whole_file.write_text('old')
    with pytest.raises(ZeroDivisionError), whole.new_folder(tmp_path / 'save', bool) as new:
        whole.write_text(new / 'a', str(1 / 0))
    with pytest.raises(ZeroDivisionError), whole.new_file(whole_file) as new:
        new.write_text('half')
        new.write_text(str(1 / 0))
    assert (tmp_path / 'save/a').read_text() == whole_file.read_text() == 'old'
    assert _names(tmp_path) == ['file', 'save']


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
    _text(folder, 'old')
    (folder / 'README.md').write_text('mine')
    (folder / 'notes').mkdir()
    (folder / 'notes/first').write_text('mine too')
    (folder / 'link').symlink_to('README.md')
    with whole.new_folder(folder, {'a', 'b'}.__contains__) as new:
        whole.write_text(new / 'a', 'new')
    assert _names(folder) == ['README.md', 'a', 'link', 'notes']  # b is of the older version
    assert (folder / 'a').read_text() == 'new' and (folder / 'link').read_text() == 'mine'
    assert (folder / 'notes/first').read_text() == 'mine too'
    assert _names(tmp_path) == ['save']


@pytest.mark.parametrize('exchanges', [True, False])
@pytest.mark.parametrize('after', [False, True])
def test_what_others_do_to_their_files_during_a_save_stays(tmp_path, monkeypatch, exchanges, after):
    if not exchanges:
        _no_exchange(monkeypatch)
    folder, other = tmp_path / 'save', tmp_path / 'other'
    names = 'replaced written appended deleted kept renamed'.split()
    _text(folder, 'old')
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
    _text(folder, 'new')
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
    assert _names(folder / 'notes') == ['first', 'second'] and _names(tmp_path) == ['save']


def test_a_folder_that_cannot_be_moved_is_kept_and_named(tmp_path, monkeypatch):
    folder, rename = tmp_path / 'save', os.rename
    _text(folder, 'old')
    for name in ('data', 'mounted', 'notes'):
        (folder / name).mkdir()
        (folder / name / 'file').write_text(name)

    def renaming(source, target):
        if Path(source).name == 'mounted':
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(source))
        rename(source, target)

    monkeypatch.setattr(os, 'rename', renaming)
    with pytest.raises(OSError, match='what could not be moved is in ') as caught:
        _text(folder, 'new')
    [place] = tmp_path.glob('.save.*.new')
    assert str(place) in str(caught.value) and 'mounted' in str(caught.value)
    assert [path.read_text() for path in place.rglob('file')] == ['mounted']
    assert _names(folder) == ['a', 'b', 'data', 'notes'] and (folder / 'a').read_text() == 'new'
    monkeypatch.setattr(os, 'rename', rename)
    monkeypatch.setattr(whole, '_STALE', -1.0)
    _text(folder, 'newer')
    assert (folder / 'mounted/file').read_text() == 'mounted' and _names(tmp_path) == ['save']


@pytest.mark.parametrize('moment', ['between the renames', 'after the exchange'])
def test_an_interrupt_in_the_exchange_loses_nothing(tmp_path, monkeypatch, moment):
    folder, rename = tmp_path / 'save', os.rename
    _text(folder, 'old')
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
        _text(folder, 'new')
    assert _names(folder) == ['a', 'b', 'notes'] and _names(folder / 'notes') == ['first']
    assert (folder / 'a').read_text() == ('old' if moment == 'between the renames' else 'new')
    assert _names(tmp_path) == ['save']


@pytest.mark.parametrize('asked', ['ismount', 'access'])
def test_a_folder_that_could_not_move_is_refused_and_all_stays(tmp_path, monkeypatch, asked):
    folder = tmp_path / 'save'
    _text(folder, 'old')
    (folder / 'data').mkdir()
    (folder / 'data/file').write_text('mine')
    if asked == 'ismount':
        monkeypatch.setattr(os.path, 'ismount', lambda path: path.name == 'data')
    else:
        monkeypatch.setattr(os, 'access', lambda path, mode: path.name != 'data')
    with pytest.raises(OSError, match='cannot move to a new version.*data'):
        _text(folder, 'new')
    assert _names(folder) == ['a', 'b', 'data'] and (folder / 'a').read_text() == 'old'
    assert (folder / 'data/file').read_text() == 'mine' and _names(tmp_path) == ['save']


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_save_keeps_the_permissions_of_what_it_replaces(tmp_path):
    file, folder = tmp_path / 'file', tmp_path / 'save'
    file.write_text('old')
    file.chmod(0o600)
    _text(folder, 'old')
    folder.chmod(0o700)
    (folder / 'a').chmod(0o640)
    plain = _mode(folder / 'b')
    with whole.new_file(file) as new:
        assert _mode(new.parent) == 0o700  # nobody else reads it before it is in its place either
        new.write_text('new')
    _text(folder, 'new')
    assert (file.read_text(), (folder / 'a').read_text()) == ('new', 'new')
    assert (_mode(file), _mode(folder), _mode(folder / 'a')) == (0o600, 0o700, 0o640)
    assert _mode(folder / 'b') == plain
    empty = tmp_path / 'empty'
    empty.mkdir(mode=0o2770)
    empty.chmod(0o2770)
    _text(empty, 'new')
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
    _text(tmp_path / 'save', 'old')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(PermissionError, match='save'), whole.new_folder(tmp_path / 'save', bool):
        raise AssertionError('it was given a folder')


def test_a_killed_writer_leaves_the_older_save_and_the_next_one_tidies_up(tmp_path, monkeypatch):
    _text(tmp_path / 'save', 'old')
    code = (
        'import os, signal, sys; from peftjax.interop.files import whole\n'
        'with whole.new_folder(sys.argv[1], bool) as new:\n'
        '    whole.write_text(new / "a", "new")\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'save')], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / 'save/a').read_text() == 'old' and len(_names(tmp_path)) == 2
    _text(tmp_path / 'save', 'newer')  # the folder of a process that began just now stays
    assert len(_names(tmp_path)) == 2
    monkeypatch.setattr(whole, '_STALE', -1.0)
    _text(tmp_path / 'save', 'newest')
    assert _names(tmp_path) == ['save']


def test_what_a_killed_writer_had_moved_goes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, '_STALE', -1.0)
    place = tmp_path / f'.save.{"0" * 16}.new'
    (place / 'new/notes').mkdir(parents=True)  # after the exchange, before the folder moved over
    (tmp_path / 'save').mkdir()
    _text(tmp_path / 'save', 'newer')
    assert _names(tmp_path / 'save') == ['a', 'b', 'notes']
    place.mkdir()  # between the two renames of a file system that has no exchange
    (tmp_path / 'save').rename(place / 'old')
    with pytest.raises(ZeroDivisionError), whole.new_folder(tmp_path / 'save', bool):
        print(1 / 0)
    assert _names(tmp_path / 'save') == ['a', 'b', 'notes']


def test_the_folder_of_a_writer_at_work_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, '_STALE', -1.0)
    with whole.new_folder(tmp_path / 'save', bool) as first:
        _text(tmp_path / 'save', 'second')
        whole.write_text(first / 'a', 'first')
    assert (tmp_path / 'save/a').read_text() == 'first'


def test_what_cannot_be_replaced_is_named(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'here').mkdir()
    with pytest.raises(NotADirectoryError, match='file'), whole.new_folder(tmp_path / 'file', bool):
        pass
    with pytest.raises(OSError, match='no regular file'), whole.new_file(tmp_path / 'here'):
        pass
    (tmp_path / 'device').symlink_to('/dev/null')
    with pytest.raises(OSError, match='no regular file'), whole.new_file(tmp_path / 'device'):
        pass
    monkeypatch.chdir(tmp_path / 'here')
    with pytest.raises(OSError, match='current folder'), whole.new_folder('.', bool):
        pass


def test_bytes_that_do_not_come_back_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(
        whole, 'flush', lambda path: path.write_bytes(path.read_bytes()[:-1] + b'?')
    )
    with pytest.raises(OSError, match='other bytes'):
        whole.write_text(tmp_path / 'a', 'text')
    with pytest.raises(OSError, match='other bytes'):
        whole.write_tensors(tmp_path / 'b', {'x': np.arange(3)})


def _save(folder: Path, count: int) -> None:
    mlp, transform = MLP(), peftjax.lora(rank=2, targets=r'hidden')
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    for number in range(count):
        each = jax.tree.map(lambda leaf, n=number: leaf * 0 + n, adapter)
        peftjax.save(folder, mlp, transform, each, frozen)


def test_two_writers_and_a_reader_meet_whole_saves_alone(tmp_path):
    folder, context = tmp_path / 'save', multiprocessing.get_context('spawn')
    _save(folder, 1)
    writers = [context.Process(target=_save, args=(folder, 40)) for _ in range(2)]
    for each in writers:
        each.start()
    mlp, seen = MLP(), set()
    while any(each.is_alive() for each in writers):
        leaves = jax.tree.leaves(peftjax.restore(folder, mlp).adapter)
        [value] = {float(number) for leaf in leaves for number in np.ravel(leaf)}
        seen.add(value)
    for each in writers:
        each.join()
    assert [each.exitcode for each in writers] == [0, 0] and len(seen) > 2
    assert _names(tmp_path) == ['save']


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(tmp_path):
    _text(tmp_path / 'save', 'old')
    calls = []

    def read():
        first = (tmp_path / 'save/a').read_text()
        if not calls:
            _text(tmp_path / 'save', 'new')
        calls.append(first)
        return first, (tmp_path / 'save/b').read_text()

    assert steadily(tmp_path / 'save', read) == ('new', 'new') and len(calls) == 2

    def always():
        _text(tmp_path / 'save', 'newer')

    with pytest.raises(CheckpointError, match='was replaced 200 times'):
        steadily(tmp_path / 'save', always)


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
    folder = tiny_runs.checkpoint(tmp_path_factory.mktemp('llama') / 'base', 'tiny_llama')
    return folder, peftjax.load(folder, scan=False)


def _adapter(model):
    transform = peftjax.lora(rank=2, targets=TARGETS)
    return transform, transform.init(jax.random.key(0), model)[0]


WRITERS = {
    'save_adapter': lambda path, base, model, tx, adapter: peftjax.save_adapter(
        path, model, tx, adapter
    ),
    'save': lambda path, base, model, tx, adapter: peftjax.save(
        path, model, tx, adapter, tx.freeze(model, adapter)
    ),
    'save_checkpoint': lambda path, base, model, tx, adapter: peftjax.save_checkpoint(
        path, model, model.params, base
    ),
    'export_gguf': lambda path, base, model, tx, adapter: peftjax.export_gguf(
        path / 'x.gguf', model, tx, adapter
    ),
}


@pytest.mark.parametrize('writer', WRITERS)
def test_a_full_disk_is_an_error_and_leaves_the_older_save(llama, tmp_path, writer):
    base, model = llama
    write = WRITERS[writer]
    target = tmp_path / 'target'
    target.mkdir()
    write(target, base, model, *_adapter(model))
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 500, 1500):
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(OSError, match=r'target|x\.gguf'):
                write(target, base, model, *_adapter(model))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert _names(tmp_path) == ['target']


@pytest.mark.parametrize('writer', WRITERS)
def test_links_in_a_target_are_not_followed(llama, tmp_path, writer):
    base, model = llama
    victim, target = tmp_path / 'victim', tmp_path / 'target'
    victim.write_text('mine')
    target.mkdir()
    names = 'adapter_config.json adapter_model.safetensors config.json model.safetensors'.split()
    names += ['tokenizer.json', 'peftjax.json', 'adapter.safetensors', 'x.gguf']
    for name in names:
        (target / name).symlink_to(victim)
        (target / f'.{name}.new').symlink_to(victim)
    WRITERS[writer](target, base, model, *_adapter(model))
    assert victim.read_text() == 'mine'


def test_a_link_out_of_the_source_is_not_copied(llama, tmp_path):
    base, model = llama
    source, private = tmp_path / 'source', tmp_path / 'private'
    source.mkdir()
    private.write_text('secret')
    for each in base.iterdir():
        os.link(each, source / each.name)
    (source / 'vocab.txt').symlink_to(private)
    with pytest.raises(CheckpointError, match=r'vocab\.txt is a link to .*private'):
        peftjax.save_checkpoint(tmp_path / 'merged', model, model.params, source)
    assert not (tmp_path / 'merged').exists()
    (source / 'vocab.txt').unlink()
    # As the hub's cache holds a checkpoint.
    cached = tmp_path / 'models--a--b/snapshots/0'
    cached.mkdir(parents=True)
    (tmp_path / 'models--a--b/blobs').mkdir()
    for each in source.iterdir():
        each.rename(tmp_path / 'models--a--b/blobs' / each.name)
        (cached / each.name).symlink_to(f'../../blobs/{each.name}')
    peftjax.save_checkpoint(tmp_path / 'merged', model, model.params, cached)
    assert (tmp_path / 'merged/tokenizer.json').is_file()
    assert not (tmp_path / 'merged/tokenizer.json').is_symlink()
