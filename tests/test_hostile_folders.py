"""Folders of `peftjax.save` that nobody vouches for: one error that says what is wrong."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

import peftjax
from peftjax.interop.folder import arrays as files
from peftjax.interop.folder.text import read_text
from tests.saved_folders import MLP


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with every file."""
    folder = tmp_path_factory.mktemp('saved')
    transform = peftjax.chain(
        peftjax.lora(rank=2, init='pissa', targets=r'hidden'),
        peftjax.fish_mask({'out/kernel': np.asarray([0, 9])}),
    )
    adapter, frozen = transform.init(jax.random.key(0), MLP())
    peftjax.save(folder, MLP(), transform, adapter, frozen)
    return folder


def _set(fields, path, value):
    *parents, last = path.split()
    for each in parents:
        fields = fields[int(each) if isinstance(fields, list) else each]
    fields[last] = value


_LORA = 'transform arguments transforms tuple 0'
_INIT = f'{_LORA} arguments init'
_DEEP = functools.reduce(lambda inner, _: [inner], range(80), 1)
# Where, what stands there, and what the error says.
HOSTILE = {
    'a name outside of the public ones': (
        f'{_LORA} method',
        'os.system',
        "'os.system' is no method",
    ),
    'a public function that makes no transform': (
        f'{_LORA} method',
        'load_adapter',
        "'load_adapter' is no method",
    ),
    'a method of functions': (f'{_LORA} method', 'weightwise', "'weightwise' is no method"),
    'a name that is none': (f'{_LORA} method', ['lora'], 'is no method'),
    'a function of another module': (_INIT, {'function': 'print'}, "'print' is no function"),
    'a function that is no activation': (
        _INIT,
        {'function': 'one_hot'},
        "'one_hot' is no function",
    ),
    'a value of another kind': (_INIT, {'value': 'Path', 'fields': {}}, "'Path' is no value"),
    'a kind that is none': (_INIT, {'pickle': 'gASV'}, 'keys of no kind'),
    'an unknown argument': (f'{_LORA} arguments evil', 1, "unexpected keyword argument 'evil'"),
    'a rank of another type': (f'{_LORA} arguments rank', 'two', 'rank must be a whole number'),
    'a huge rank': (f'{_LORA} arguments rank', 10**12, "larger than 'hidden/kernel' allows"),
    'a greater one than any': (f'{_LORA} arguments rank', 10**30, 'too large a number'),
    'a negative rank': (f'{_LORA} arguments rank', -1, 'rank must be'),
    'another rank': (
        f'{_LORA} arguments rank',
        3,
        r'shape \(4, 2\), but the transform makes \(4, 3\)',
    ),
    'no dtype': (f'{_LORA} arguments dtype', {'dtype': 'object'}, "'object' is no dtype"),
    'a pattern that looks ahead': (f'{_LORA} arguments targets', '(?!a)(h*)*x', 'RE2 matches'),
    'a pattern that would take for ever': (
        f'{_LORA} arguments targets',
        '(.?)*' + '.?' * 60 + '(.|.)*!',
        'matches no',
    ),
    'a pattern that is none': (f'{_LORA} arguments targets', '(hidden', 'not a regular expression'),
    'a tensor that is not there': (
        _INIT,
        {'array': 'transform/9'},
        "lacks the tensor 'transform/9'",
    ),
    'a tensor that is taken twice': (
        _INIT,
        [{'array': 'start/0/hidden/kernel/a'}, {'array': 'start/0/hidden/kernel/a'}],
        'two places ask for it',
    ),
    'a deep list': (_INIT, _DEEP, 'nested too deeply'),
    'a list for a chain': ('transform arguments transforms', [1, 2], 'chain takes a tuple'),
    'no transform': ('transform', {'tuple': []}, 'a tuple stands where'),
    'a string for a transform': ('transform', 'lora', "'transform' is missing, or of another type"),
    'another format': ('format', 2, 'is of format 2'),
    'a list for the model': ('model', [], "'model' is missing"),
    'a number for a leaf': ('model out/kernel', 1, 'identifies no model'),
    'numbers that are not the own': (
        'own',
        ['hidden/kernel/none'],
        "no number 'hidden/kernel/none'",
    ),
    'a list in the own': ('own', [['a']], 'no number'),
    'no source': ('params from', 'nowhere', 'not how this transform'),
    'the source of another method': ('params from', 'adapter', 'not how this transform'),
    'no values': ('params values', 3, 'lacks values'),
    'a value for no leaf': ('params values x', {'value': 'Hole', 'fields': {}}, "'x' is no leaf"),
    'a value of another shape': (
        'params values out/kernel',
        {'value': 'Hole', 'fields': {'shape': {'tuple': [3, 3]}, 'dtype': None}},
        r'shape \(3, 3\)',
    ),
    'a quantised leaf of nothing': (
        'params values out/kernel',
        {'quantized': {'arrays': {'dict': []}, 'scheme': None, 'matrix': None, 'dtype': None}},
        'QuantizedArray cannot be made',
    ),
    'samples that are none': ('params samples hidden/kernel', ['a'], 'no numbers to compare'),
    'too few samples': ('params samples hidden/kernel', [0.0], 'whole=True'),
    'no files': ('files', {}, 'not described'),
    'a file of another sum': ('files adapter.safetensors sha256', '0' * 64, 'SHA-256'),
    'dtypes that are none': (
        'files adapter.safetensors dtypes',
        {'0/hidden/kernel/a': 'complex64'},
        r'shape \(4,\)',
    ),
    'a dtype that is a list': (
        'files adapter.safetensors dtypes',
        {'0/hidden/kernel/a': ['complex64']},
        'does not hold',
    ),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_description_is_refused(name, saved, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(saved, folder)
    fields = json.loads((folder / 'peftjax.json').read_text())
    path, value, told = HOSTILE[name]
    _set(fields, path, value)
    (folder / 'peftjax.json').write_text(json.dumps(fields))
    with pytest.raises(peftjax.CheckpointError, match=told):
        peftjax.restore(folder, MLP())


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{"format": NaN}',
        '{"format": 1e999}',
        f'{{"format": {"9" * 5000}}}',
        '{"format": 1, "format": 1}',
        '{"a": ' * 100_000,
        '[' * 70 + ']' * 70,
        '{"a":' * 70 + '1' + '}' * 70,
        b'\xff',
    ],
    ids=range(10),
)
def test_what_is_no_description_is_refused(text, tmp_path):
    path = tmp_path / 'peftjax.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(peftjax.CheckpointError):
        read_text(path)


@pytest.mark.parametrize(
    'field', ['format', 'peftjax', 'transform', 'model', 'own', 'params', 'files']
)
def test_a_missing_field_is_named(field, saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    fields = json.loads((saved / 'peftjax.json').read_text())
    del fields[field]
    (tmp_path / 'peftjax.json').write_text(json.dumps(fields))
    with pytest.raises(peftjax.CheckpointError, match=field):
        peftjax.restore(tmp_path, MLP())


def test_tensors_that_are_missing_unknown_or_of_another_shape(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    fields = json.loads((saved / 'peftjax.json').read_text())
    arrays = {
        '0/hidden/kernel/a': np.ones((4, 2), np.float32),
        '0/hidden/kernel/b': np.ones((2, 8), np.float32),
        '1/out/kernel': np.ones(2, np.float32),
    }
    a, b, delta = arrays
    for changed, told in [
        ({a: arrays[a], delta: arrays[delta]}, f'lacks the tensor {b!r}'),
        ({**arrays, 'x': np.ones(1)}, 'nothing here takes: x'),
        ({**arrays, a: np.ones((4, 3), np.float32)}, r"'0/hidden/kernel/a' is of shape \(4, 3\)"),
    ]:
        (tmp_path / 'adapter.safetensors').unlink()
        fields['files']['adapter.safetensors'] = files.write(
            tmp_path / 'adapter.safetensors', changed
        )
        (tmp_path / 'peftjax.json').write_text(json.dumps(fields))
        with pytest.raises(peftjax.CheckpointError, match=told):
            peftjax.restore(tmp_path, MLP())
    (tmp_path / 'adapter.safetensors').write_bytes(b'no tensors')
    with pytest.raises(peftjax.CheckpointError, match='corrupt'):
        peftjax.restore(tmp_path, MLP())
    (tmp_path / 'adapter.safetensors').unlink()
    with pytest.raises(peftjax.CheckpointError, match='does not exist'):
        peftjax.restore(tmp_path, MLP())
    with pytest.raises(peftjax.CheckpointError, match='is it a folder of'):
        peftjax.restore(tmp_path / 'nowhere', MLP())
