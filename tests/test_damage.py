"""Bytes of any file, flipped, cut or replaced: the model, or one clear error, in little time."""

import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peftjax
from peftjax.interop.errors import CheckpointError
from peftjax.train.artifacts import peak_memory_mib
from tests.checkpoint_files import golden, write_folder, write_gguf
from tests.tiny_runs import checkpoint

FILES = (
    *('config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'),
    *('special_tokens_map.json', 'chat_template.jinja', 'model.safetensors.index.json'),
    'model-00001-of-00002.safetensors',
)


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """A folder with everything a folder may have, a sharded one, a GGUF file."""
    root = tmp_path_factory.mktemp('sources')
    folder = checkpoint(root / 'folder', 'tiny_llama')
    settings_of = {'eos_token': '<|im_end|>', 'chat_template': '{{ messages }}'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings_of))
    (folder / 'special_tokens_map.json').write_text(json.dumps({'bos_token': '<|im_start|>'}))
    (folder / 'chat_template.jinja').write_text('{{ messages }}')
    config, weights, _, _ = golden('llama')
    write_folder(root / 'sharded', config, weights, shards=2)
    write_gguf(root / 'model.gguf', config, weights)
    return root


def _damaged(data, content):
    """Some bytes flipped, or the end cut, or a run of bytes replaced."""
    content = bytearray(content)
    # Headers stand in front: most of the damage is done there.
    last = min(len(content), 3000) - 1 if data.draw(st.booleans()) else len(content) - 1
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, last))
        kind = data.draw(st.sampled_from(['flip', 'replace', 'cut']))
        if kind == 'flip':
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == 'replace':
            piece = data.draw(st.binary(min_size=1, max_size=9))
            content[place : place + len(piece)] = piece
        else:
            del content[place:]
            break
        last = min(last, len(content) - 1)
    return bytes(content)


@settings(deadline=20_000, max_examples=150)
@given(data=st.data())
def test_a_damaged_folder_is_read_or_refused(data, sources, tmp_path_factory):
    source = sources / data.draw(st.sampled_from(['folder', 'sharded']))
    copy = shutil.copytree(source, tmp_path_factory.mktemp('fuzz') / 'copy')
    name = data.draw(st.sampled_from([name for name in FILES if (copy / name).is_file()]))
    (copy / name).write_bytes(_damaged(data, (copy / name).read_bytes()))
    try:
        model = peftjax.load(copy)
    except ValueError as error:
        assert str(error)
    else:
        if model.tokenizer is not None:
            model.tokenizer.encode('fine film')
    finally:
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ('file', 'settings_of'),
    [
        ('tokenizer_config.json', {'bos_token': {'text': 'a'}}),
        ('tokenizer_config.json', {'eos_token': 3}),
        ('tokenizer_config.json', {'chat_template': 3}),
        ('tokenizer_config.json', {'chat_template': [{'name': 'default'}]}),
        ('tokenizer_config.json', {'chat_template': ['a']}),
        ('tokenizer.json', {'model': 3}),
    ],
)
def test_a_tokenizer_of_the_wrong_kind_is_named(file, settings_of, sources, tmp_path):
    copy = shutil.copytree(sources / 'folder', tmp_path / 'copy')
    (copy / file).write_text(json.dumps(settings_of))
    with pytest.raises(CheckpointError, match=r'of the wrong kind|read as a tokenizer'):
        peftjax.load(copy)


@settings(deadline=20_000, max_examples=150)
@given(data=st.data())
def test_a_damaged_gguf_file_is_read_or_refused(data, sources, tmp_path_factory):
    copy = tmp_path_factory.mktemp('fuzz') / 'copy.gguf'
    copy.write_bytes(_damaged(data, (sources / 'model.gguf').read_bytes()))
    try:
        peftjax.load(copy)
    except ValueError as error:
        assert str(error)
    finally:
        copy.unlink()


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    """A folder and a GGUF file of 8 MB, next to which Python's own memory is small."""
    root = tmp_path_factory.mktemp('wide')
    config, weights, _, _ = golden('llama')
    sizes = {16: 256, 24: 1024, 8: 128, 32: 32}  # hidden, feed-forward, key-value, vocabulary
    config |= {'hidden_size': 256, 'intermediate_size': 1024, 'head_dim': 64}
    weights = {
        name: np.ones([sizes[size] for size in tensor.shape], np.float32)
        for name, tensor in weights.items()
    }
    write_folder(root / 'copy', config, weights)
    write_gguf(root / 'copy.gguf', config, weights)
    return root


def _load_damaged(root):
    """Raises `AssertionError` if damaged copies take more memory than the whole files."""
    for name in 3 * ('copy', 'copy.gguf'):
        peftjax.load(root / name)
    whole = peak_memory_mib()

    @settings(deadline=None, max_examples=60, derandomize=True, database=None)
    @given(data=st.data())
    def check(data):
        name = data.draw(st.sampled_from(['copy', 'copy.gguf']))
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, name)
            if name == 'copy':
                part = data.draw(st.sampled_from(['config.json', 'model.safetensors']))
                file = shutil.copytree(root / name, copy) / part
            else:
                file = shutil.copyfile(root / name, copy)
            file.write_bytes(_damaged(data, file.read_bytes()))
            try:
                peftjax.load(copy)
            except ValueError as error:
                assert str(error)

    check()
    taken = peak_memory_mib() - whole
    assert taken < 32, f'{taken:.0f} MiB more than the whole files'


def test_a_damaged_file_takes_no_more_memory_than_a_whole_one(wide):
    """In a new process, because a peak never falls. It counts memory of every language."""
    process = multiprocessing.get_context('spawn').Process(target=_load_damaged, args=(wide,))
    process.start()
    process.join()
    assert process.exitcode == 0
