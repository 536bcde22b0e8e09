"""The command line: what it prints, writes and returns, and how it says no."""

import functools
import json
import subprocess
import sys

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax
from peftjax import cli
from tests.checkpoint_files import MINILM, SMOLLM2, require_package
from tests.oracle.cases import GOLDEN, stored

LLAMA, BERT = str(GOLDEN / 'llama' / 'base'), str(GOLDEN / 'bert' / 'base')


def test_help_teaches(capsys):
    for command, word in (
        *(('inspect', '--adapter'), ('merge', '--dtype'), ('generate', '--top-p')),
        *(('convert', '--to'), ('export', '.gguf')),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, '--help'])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and word in text and f'example: peftjax {command}' in text


def test_the_command_is_installed():
    done = subprocess.run(
        [sys.executable, '-m', 'peftjax.cli', '--help'], capture_output=True, text=True, check=True
    )
    assert 'inspect' in done.stdout and 'merge' in done.stdout


def test_version_names_what_a_report_needs(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(['--version'])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.startswith(f'peftjax {peftjax.__version__}, jax {jax.__version__}, flax ')


def test_inspect_shows_sites_and_what_an_adapter_trains(capsys):
    assert cli.main(['inspect', require_package(MINILM)]) == 0
    text = capsys.readouterr().out
    assert 'layers/attention/query/kernel' in text and '22,713,216 parameters' in text
    assert cli.main(['inspect', LLAMA, '--adapter', str(GOLDEN / 'llama' / 'lora')]) == 0
    text = capsys.readouterr().out
    assert text.startswith('lora(rank=4') and 'trainable 896' in text


@pytest.mark.parametrize('folder', ['llama/lora', 'llama/ia3', 'bert/lora', 'gpt2/dora'])
def test_merge_writes_a_checkpoint_that_computes_the_same(folder, tmp_path, capsys):
    case = stored(folder)
    base = GOLDEN / folder.split('/')[0] / 'base'
    out = tmp_path / 'merged'
    assert cli.main(['merge', str(base), str(GOLDEN / folder), str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    task = 'classification' if folder.startswith('bert') else None
    model = peftjax.load(out, task=task)
    logits = np.asarray(jax.jit(model.apply)(model.params, **case.inputs))
    expected = case.outputs['logits']
    if logits.ndim == 3:
        tokens = case.inputs['attention_mask'] == 1
        logits, expected = logits[tokens], expected[tokens]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-5 * np.abs(expected).max())
    names = set(load_file(base / 'model.safetensors'))
    assert set(load_file(out / 'model.safetensors')) <= names
    assert json.loads((out / 'config.json').read_text())['dtype'] == 'float32'


def test_merge_in_another_dtype(tmp_path):
    arguments = [
        'merge',
        LLAMA,
        str(GOLDEN / 'llama' / 'lora'),
        str(tmp_path),
        '--dtype',
        'float16',
    ]
    assert cli.main(arguments) == 0
    assert {str(v.dtype) for v in load_file(tmp_path / 'model.safetensors').values()} == {'float16'}


def test_convert_and_back_gives_the_same_tensors(tmp_path, capsys):
    theirs, hub, back = GOLDEN / 'llama' / 'lora', tmp_path / 'hub', tmp_path / 'back'
    assert cli.main(['convert', LLAMA, str(theirs), str(hub), '--to', 'adapterhub']) == 0
    config = json.loads((hub / 'adapter_config.json').read_text())
    assert config['model_name'] == LLAMA and config['name'] == 'default'
    assert cli.main(['convert', LLAMA, str(hub), str(back), '--to', 'peft']) == 0
    assert capsys.readouterr().out.split() == [str(hub), str(back)]
    ours, expected = (load_file(each / 'adapter_model.safetensors') for each in (back, theirs))
    assert set(ours) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value)


def test_export_writes_a_gguf_adapter(tmp_path):
    out = tmp_path / 'a.gguf'
    assert cli.main(['export', LLAMA, str(GOLDEN / 'llama' / 'lora'), str(out)]) == 0
    names = {tensor.name for tensor in gguf.GGUFReader(out).tensors}
    assert 'blk.0.attn_q.weight.lora_a' in names and len(names) == 8


def test_generate_goes_on_with_a_text(capsys):
    arguments = ['generate', require_package(SMOLLM2), '--prompt', 'The capital of France is']
    assert cli.main([*arguments, '--max-new-tokens', '3']) == 0
    assert capsys.readouterr().out.startswith('The capital of France is Paris')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['inspect', '/no/such/folder'], 'not found'),
        (['inspect', LLAMA, '--adapter', BERT], 'adapter_config.json does not exist'),
        (
            ['convert', LLAMA, str(GOLDEN / 'llama' / 'hra'), 'unwritten', '--to', 'adapterhub'],
            'hra has no file',
        ),
        (['export', LLAMA, str(GOLDEN / 'llama' / 'ia3'), 'unwritten.gguf'], 'write plain lora'),
        (['merge', LLAMA, str(GOLDEN / 'bert' / 'lora'), 'unwritten'], 'no module of this model'),
        (
            ['merge', LLAMA, str(GOLDEN / 'llama' / 'prompt_tuning'), 'unwritten'],
            'nothing can be merged',
        ),
        (['merge', LLAMA, str(GOLDEN / 'llama' / 'lora'), LLAMA], 'is the source itself'),
        (['generate', LLAMA, '--prompt', 'a'], 'has no tokenizer.json'),
    ],
)
def test_a_mistake_is_one_line_and_the_status_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith(f'peftjax {arguments[0]}: ')
    assert 'Traceback' not in error


@functools.cache
def _model():
    return peftjax.load(LLAMA)


def test_params_of_another_model_are_not_written(tmp_path):
    model = _model()
    params = jax.tree.map(lambda leaf: leaf[:1], model.params)
    with pytest.raises(ValueError, match='needs'):
        peftjax.save_checkpoint(tmp_path / 'new', model, params, LLAMA)
    assert not (tmp_path / 'new').exists()


def test_a_source_without_a_config_is_refused(tmp_path):
    with pytest.raises(peftjax.CheckpointError, match='no config.json'):
        peftjax.save_checkpoint(tmp_path, _model(), _model().params, require_package(SMOLLM2))
