"""`peftjax plan` and `python -m experiments.plan`: what they print, and what they refuse."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peftjax import cli
from peftjax.cli.sizes import count, llama_of, read_size
from tests import tiny_runs
from tests.checkpoint_files import golden, write_folder

ROOT = Path(__file__).parents[1]


@pytest.mark.sampled
@pytest.mark.parametrize('variant', ['llama', 'bert', 't5', 'vit', 'whisper'])
def test_the_command_plans_every_family_without_weights(variant, tmp_path, capsys):
    config, weights, _, _ = golden(variant)
    folder = write_folder(tmp_path / variant, config, weights)
    (folder / 'model.safetensors').unlink()
    command = ['plan', str(folder), '--batch', '4', '--length', '8', '--fsdp', '4']
    methods = ['--method', "select(targets='.*norm.*')", '--method', 'full()']
    assert cli.main([*command, *methods, '--machine', 'H100']) == 0
    rows = capsys.readouterr().out.splitlines()
    assert 'fits' in rows[0]
    assert rows[1].startswith("select(targets='.*norm.*')") and ' yes ' in rows[1]
    assert rows[2].startswith('full()')


def test_the_command_knows_the_textbook(capsys):
    assert cli.main(['plan', '7B', '--dtype', 'float16']) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['weights', '14.0', 'GB'] in lines
    assert ['total', '56.0', 'GB'] in lines


def test_a_number_of_parameters_is_planned_like_the_checkpoint_of_that_size(tmp_path, capsys):
    flags = ['--batch', '8', '--length', '64', '--fsdp', '4', '--machine', 'v5e', '--dtype']
    flags += ['bfloat16', '--remat', 'full', '--method', "lora(rank=2, targets=r'.*/q_proj')"]
    sizes = {'vocab_size': 49152, 'hidden_size': 576, 'intermediate_size': 1536}
    sizes |= {'num_hidden_layers': 30, 'num_attention_heads': 9, 'num_key_value_heads': 3}
    config = {**sizes, 'tie_word_embeddings': True, 'model_type': 'llama'}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    rows = {}
    for base in ('135M', str(tmp_path)):
        for quantize in ('nf4', 'int8'):
            assert cli.main(['plan', base, '--quantize', quantize, *flags]) == 0
            *above, rows[base, quantize] = capsys.readouterr().out.splitlines()
            assert ('Llama of 134,515,008 parameters' in above[0]) == (base == '135M')
    assert rows['135M', 'nf4'] == rows[str(tmp_path), 'nf4'] != rows['135M', 'int8']


@pytest.mark.parametrize('flags', [['--fsdp', '8'], ['--quantize', 'nf4'], ['--batch', '8']])
def test_flags_that_need_a_shape_are_refused_for_a_number_alone(flags, capsys):
    assert cli.main(['plan', '7B', *flags]) == 2
    assert f'7B with {flags[0]} needs a method' in capsys.readouterr().err


def test_a_folder_with_the_name_of_a_size_is_planned_itself(tmp_path, monkeypatch, capsys):
    config, weights, _, _ = golden('llama')
    write_folder(tmp_path / '7B', config, weights)
    monkeypatch.chdir(tmp_path)
    assert read_size('7B') is None and read_size('8B') == 8e9
    rows = {}
    for base in ('7B', str(tmp_path / '7B')):
        assert cli.main(['plan', base, '--batch', '2', '--length', '8']) == 0
        rows[base] = capsys.readouterr().out
    assert rows['7B'] == rows[str(tmp_path / '7B')]


@pytest.mark.parametrize('flag', ['--batch', '--length'])
@pytest.mark.parametrize('number', ['0', '-3'])
def test_a_step_of_nothing_is_refused_in_a_line(flag, number, capsys):
    for method in ([], ['--method', 'full()']):
        assert cli.main(['plan', '7B', flag, number, *method]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"peftjax plan: argument {flag}: '{number}' is no whole number")
        assert error.endswith('write 1 or more')


@pytest.mark.parametrize('text', ['135M', '1B', '5B', '7B', '30B', '405B', '1T'])
def test_a_llama_of_a_size_has_about_that_size(text):
    size = read_size(text)
    assert size is not None
    assert count(llama_of(size, 64)) == pytest.approx(size, rel=0.1)


def test_a_size_too_small_for_a_llama_is_an_error(capsys):
    assert cli.main(['plan', '1M', '--method', 'full()']) == 2
    assert 'too few for a Llama' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        ('lorra(rank=2)', "no method 'lorra'; near names: lora"),
        ('lora(rank=open("x"))', 'does not read as a method'),
        ('load(source="x")', "no method 'load'"),
        ('__import__("os")', 'does not read as a method'),
        ('lora(rnk=3)', "no setting 'lora.rnk'; near names: ['lora.rank'"),
        ('lora(rank=2, targets="nothing")', 'nothing'),
    ],
)
def test_a_method_that_is_none_is_a_line_of_text(call, message, tmp_path, capsys):
    config, weights, _, _ = golden('llama')
    folder = write_folder(tmp_path / 'llama', config, weights)
    assert cli.main(['plan', str(folder), '--method', call]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.strip().splitlines()) <= 3


def test_the_program_plans_a_config(tmp_path):
    source = shutil.copytree(tiny_runs.checkpoint(tmp_path / 'a', 'tiny_bert'), tmp_path / 'bert')
    said = json.loads((source / 'config.json').read_text())
    flags = [f'--config.model.source={source}', '--config.data.lengths=(8,)', '--machine=v5e']
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.plan', '--config=configs/lora_sentiment.py', *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said['model_type'] == 'bert' and 'lora+select' in done.stdout


@pytest.mark.parametrize(
    ('flag', 'value', 'setting'), [('batch', '4', 'data.batch_size'), ('method', 'lora', 'methods')]
)
def test_a_flag_of_a_base_beside_a_config_names_the_setting(flag, value, setting, capsys):
    assert cli.main(['plan', '--config', 'configs/lora.py', f'--{flag}', value]) == 2
    told = f'--{flag} goes with a base; with a config, write --{setting}'
    assert told in capsys.readouterr().err
