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
from tokenizers import Tokenizer, models

import peftjax
from peftjax import cli
from peftjax.cli import generate_command
from peftjax.cli.commands import COMMANDS
from tests import tiny_runs
from tests.checkpoint_files import MINILM, SMOLLM2, require_package
from tests.oracle.cases import GOLDEN, stored

LLAMA, BERT = str(GOLDEN / 'llama' / 'base'), str(GOLDEN / 'bert' / 'base')


@pytest.mark.parametrize('command', COMMANDS)
def test_help_begins_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, '--help'])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.startswith(f'example: peftjax {command} ')
    assert all(len(line) <= 100 for line in text.splitlines()[2:])


def test_the_overview_names_every_command(capsys):
    assert cli.main(['--help']) == 0
    text = capsys.readouterr().out
    assert text.startswith('example: peftjax train ')
    assert all(f'\n  {name} ' in text for name in COMMANDS)


def test_the_command_is_installed():
    done = subprocess.run(
        [sys.executable, '-m', 'peftjax.cli', '--help'], capture_output=True, text=True, check=True
    )
    assert 'inspect' in done.stdout and 'merge' in done.stdout


def test_version_names_what_a_report_needs(capsys):
    assert cli.main(['--version']) == 0
    text = capsys.readouterr().out
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
    assert cli.main([*arguments, '--raw', '--max-new-tokens', '3']) == 0
    assert capsys.readouterr().out.startswith('The capital of France is Paris')


def test_generate_answers_through_the_chat_template(capsys):
    arguments = ['generate', require_package(SMOLLM2), '--prompt', 'What is the capital of France?']
    assert cli.main([*arguments, '--max-new-tokens', '24']) == 0
    assert capsys.readouterr().out == 'The capital of France is Paris.\n'


@pytest.mark.parametrize('turn', ['<|im_end|>', '<eot>', ''])
def test_an_answer_ends_where_the_template_ends_a_turn(turn):
    words = ['[UNK]', 'yes', '</s>', '<|im_end|>', '<eot>', 'Yes']
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, '[UNK]'))
    backend.add_special_tokens(words[2:5])
    # What a template writes behind an answer is an end, and what it writes before one is none.
    template = (
        "{% for m in messages %}</s>{{ m.content }}{{ '"
        + turn
        + "' if m.role == 'assistant' }}{% endfor %}{% if add_generation_prompt %}</s>{% endif %}"
    )
    tokenizer = peftjax.Tokenizer(backend, eos_id=5, chat_template=template, end_ids=(1, 5))
    texts, ends = generate_command.conversations(tokenizer, ['a', 'b'], 'be kind')
    assert texts == ['</s>be kind</s>a</s>', '</s>be kind</s>b</s>']
    assert ends == (5, 1, *([words.index(turn)] if turn else []))


def test_all_ends_of_a_generation_config_are_read(tmp_path):
    folder = tiny_runs.checkpoint(tmp_path / 'llama', 'tiny_llama')
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'eos_token_id': 5}))
    assert peftjax.load(folder).tokenizer.ends == (5,)
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': [3, 7, 9999]}))
    (folder / 'tokenizer_config.json').write_text(json.dumps({'eos_token': '[UNK]'}))
    assert peftjax.load(folder).tokenizer.ends == (1, 3, 7)
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': ['a']}))
    with pytest.raises(peftjax.CheckpointError, match=r'eos_token_id is \[.a.\]'):
        peftjax.load(folder)


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
        (['merge', LLAMA, str(GOLDEN / 'llama' / 'lora'), LLAMA], 'or --force to put new files'),
        (['generate', LLAMA, '--prompt', 'a'], 'has no tokenizer.json'),
        (['merge', LLAMA, 'unwritten'], 'is no work folder of a run; give an adapter'),
        (['merge', LLAMA], 'the following arguments are required: out'),
        (['inspect', LLAMA, 'more'], "unexpected argument 'more'"),
        (['inspect', LLAMA, '--adaptr', 'x'], 'unknown flag --adaptr; near names: --adapter'),
        (['generate', LLAMA, '--prompt', 'a', '--top-k', 'b'], "'b' is no whole number from 1"),
        (['trian'], "no command 'trian'; near names: train"),
        (['report', LLAMA], 'holds no sweep'),
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
