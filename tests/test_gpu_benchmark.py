"""The GPU benchmark on small shapes: its rows, and that a row that fails costs no other."""

import json
import math
import subprocess
import sys

import pytest

from benchmarks import gpu, gpu_rows, gpu_table
from benchmarks.gpu_models import METHODS

ROWS = {
    (row['kind'], row.get('method'), row.get('runs'), row.get('remat')): row
    for row in gpu.rows(tiny=True)
    if row['side'] == 'peftjax'
}
TRAIN = ROWS['train', 'LoRA q,v', None, None]


# One of each kind by default: each is a process of its own on a GPU, and compiles here.
_KINDS = {row['kind']: key for key, row in reversed(ROWS.items())}


@pytest.mark.parametrize(
    'key',
    [
        pytest.param(key, id=str(key), marks=() if key in _KINDS.values() else pytest.mark.slow)
        for key in ROWS
    ],
)
def test_every_row_gives_its_numbers(key):
    row = ROWS[key]
    result = gpu_rows.KINDS[row['kind']](row)
    json.dumps(result)
    for name, value in result.items():
        if name.endswith(('ms', 'per_second', 'tflops')):
            assert math.isfinite(value) and value > 0, name
    if row['kind'] == 'attention':
        assert all(error < 0.02 for error in result['plain_errors'].values())
        assert all(error < 0.02 for error in result['chosen_errors'].values())
    if row['kind'] in ('train', 'sweep'):
        assert result['losses'][1] < result['losses'][0]
        assert result['compiled_bytes'] > 0
    # What is computed again for the backward pass, or dequantised, is scratch that is not counted.
    if row['kind'] == 'train' and not row['remat'] and not row['method'].startswith('NF4'):
        assert 0.4 < result['counted_bytes'] / result['compiled_bytes'] < 2


def test_rows_are_those_that_are_promised():
    rows = gpu.rows(tiny=False)
    trained = [(row['method'], row['side']) for row in rows if row['kind'] == 'train']
    assert set(trained) == {(name, side) for name in METHODS for side in ('peftjax', 'torch')}
    assert {row['runs'] for row in rows if row['kind'] == 'sweep'} == {1, 4, 16, 64}
    for row in rows:
        if row['kind'] in ('train', 'attention'):
            assert (row['rows'], row['length']) == (4, 2048)
            assert row['steps'] >= 10
        if row['kind'] == 'decode':
            assert row['rows'] == 64 and row['adapters'] in (0, 1, 64)


def test_a_row_that_fails_or_has_no_time_costs_no_other(tmp_path, monkeypatch):
    broken = {**TRAIN, 'method': 'no such method'}
    torch = {**TRAIN, 'side': 'torch'}
    done = gpu.run(tmp_path, [broken, torch, TRAIN], 5, torch_python='no-such-python')
    told = json.loads((tmp_path / 'gpu.json').read_text())
    assert told['rows'] == done and 'jax' in told['versions']
    first, second, third = (row['result'] for row in done)
    assert "KeyError: 'no such method'" in first['error']
    assert 'no-such-python' in second['error']
    assert third['tokens_per_second'] > 0 and third['device'] == 'cpu'
    page = (tmp_path / 'gpu.md').read_text()
    assert '| LoRA q,v, tiny, 2 x 32 | peftjax |' in page
    assert "- train, peftjax, no such method: failed, KeyError: 'no such method'" in page
    monkeypatch.setattr(gpu, 'measure', lambda words, seconds: pytest.fail('no time was left'))
    (row,) = gpu.run(tmp_path, [TRAIN], 0.1, torch_python=sys.executable)
    assert row['result'] == {'skipped': '6 s of 0.1 minutes were left'}


def test_a_row_that_takes_too_long_is_ended():
    result = gpu.measure([sys.executable, '-c', 'import time; time.sleep(60)'], 0.5)
    assert result == {'error': 'not done after 0.5 s'}


def test_what_a_row_prints_that_is_no_result_is_an_error():
    assert 'no result' in gpu.measure([sys.executable, '-c', 'print("hello")'], 60)['error']
    assert 'status 3' in gpu.measure([sys.executable, '-c', 'raise SystemExit(3)'], 60)['error']


def test_the_table_divides_by_torch_and_by_the_machine():
    ours = {'ms': 100.0, 'tokens_per_second': 300.0, 'model_tflops': 98.9, 'peak_bytes': 2**30}
    ours['device'] = 'NVIDIA H200'
    theirs = {**ours, 'tokens_per_second': 200.0}
    rows = [
        {**TRAIN, 'seconds': 1.0, 'side': side, 'result': gpu.with_mfu(result)}
        for side, result in (('peftjax', ours), ('torch', theirs))
    ]
    head, _, first, second = gpu_table.page(rows).splitlines()
    cells = dict(zip(head.split(' | '), first.split(' | '), strict=True))
    assert (cells['MFU'], cells['peak GiB'], cells['of torch |']) == ('0.100', '1.00', '1.50 |')
    assert second.endswith('|  |')


def test_it_needs_no_package_but_what_trains():
    """It must run where only the training dependencies are installed."""
    names = 'gguf grain ml_collections tensorboardX pyarrow datasets tokenizers safetensors'
    program = f'import sys; sys.modules.update(dict.fromkeys({names.split()!r}))\n'
    program += 'import peftjax, peftjax.train\nfrom benchmarks import gpu, gpu_rows\n'
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=gpu.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
