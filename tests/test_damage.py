"""Bytes of any file, flipped, cut or replaced: the model, or one clear error, in little time."""

import json
import shutil
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peftjax
from peftjax.interop.errors import CheckpointError
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


@settings(deadline=2000, max_examples=150)
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


@settings(deadline=2000, max_examples=150)
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


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_file_asks_for_no_more_memory_than_it_could_hold(data, sources, tmp_path_factory):
    """Beside 16 MB, eight times the bytes of the file, whatever its header claims."""
    gguf_file = data.draw(st.booleans())
    source = sources / ('model.gguf' if gguf_file else 'folder')
    copy = tmp_path_factory.mktemp('fuzz') / ('copy.gguf' if gguf_file else 'copy')
    if gguf_file:
        file = copy
        shutil.copyfile(source, copy)
    else:
        file = shutil.copytree(source, copy) / 'model.safetensors'
    file.write_bytes(_damaged(data, file.read_bytes()))
    tracemalloc.start()
    try:
        peftjax.load(copy)
    except ValueError as error:
        assert str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 * file.stat().st_size + 16e6, peak
