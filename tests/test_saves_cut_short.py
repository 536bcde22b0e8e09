"""Writers that are killed, meet each other or a full disk leave one whole save."""

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
from peftjax.interop.files import whole
from peftjax.interop.files.steady import steadily
from tests import tiny_runs
from tests.saved_folders import MLP
from tests.test_whole import TARGETS, names_in, put_text


def test_a_killed_writer_leaves_the_older_save_and_the_next_one_tidies_up(tmp_path, monkeypatch):
    put_text(tmp_path / 'save', 'old')
    code = (
        'import os, signal, sys; from peftjax.interop.files import whole\n'
        'with whole.new_folder(sys.argv[1], bool) as new:\n'
        '    whole.write_text(new / "a", "new")\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'save')], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / 'save/a').read_text() == 'old' and len(names_in(tmp_path)) == 2
    put_text(tmp_path / 'save', 'newer')  # the folder of a process that began just now stays
    assert len(names_in(tmp_path)) == 2
    monkeypatch.setattr(whole, '_STALE', -1.0)
    put_text(tmp_path / 'save', 'newest')
    assert names_in(tmp_path) == ['save']


def test_what_a_killed_writer_had_moved_goes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, '_STALE', -1.0)
    place = tmp_path / f'.save.{"0" * 16}.new'
    (place / 'new/notes').mkdir(parents=True)  # after the exchange, before the folder moved over
    (tmp_path / 'save').mkdir()
    put_text(tmp_path / 'save', 'newer')
    assert names_in(tmp_path / 'save') == ['a', 'b', 'notes']
    place.mkdir()  # between the two renames of a file system that has no exchange
    (tmp_path / 'save').rename(place / 'old')
    with pytest.raises(ZeroDivisionError), whole.new_folder(tmp_path / 'save', bool):
        print(1 / 0)
    assert names_in(tmp_path / 'save') == ['a', 'b', 'notes']


def test_the_folder_of_a_writer_at_work_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, '_STALE', -1.0)
    with whole.new_folder(tmp_path / 'save', bool) as first:
        put_text(tmp_path / 'save', 'second')
        whole.write_text(first / 'a', 'first')
    assert (tmp_path / 'save/a').read_text() == 'first'


def test_what_cannot_be_replaced_is_named(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'here').mkdir()
    with pytest.raises(NotADirectoryError, match='file'), whole.new_folder(tmp_path / 'file', bool):
        pass
    with pytest.raises(OSError, match='not a regular file'), whole.new_file(tmp_path / 'here'):
        pass
    (tmp_path / 'device').symlink_to('/dev/null')
    with pytest.raises(OSError, match='not a regular file'), whole.new_file(tmp_path / 'device'):
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
    assert names_in(tmp_path) == ['save']


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(tmp_path):
    put_text(tmp_path / 'save', 'old')
    calls = []

    def read():
        first = (tmp_path / 'save/a').read_text()
        if not calls:
            put_text(tmp_path / 'save', 'new')
        calls.append(first)
        return first, (tmp_path / 'save/b').read_text()

    assert steadily(tmp_path / 'save', read) == ('new', 'new') and len(calls) == 2

    def always():
        put_text(tmp_path / 'save', 'newer')

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
    assert names_in(tmp_path) == ['target']


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
