"""What merge, convert and export write: in which dtype, with which head, and over what."""

import contextlib
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax
from peftjax import cli
from peftjax.interop.files import whole
from tests import tiny_runs
from tests.checkpoint_files import golden, write_folder
from tests.oracle.cases import GOLDEN, arrays

LLAMA, LORA = GOLDEN / 'llama' / 'base', GOLDEN / 'llama' / 'lora'
COMMANDS = {
    'merge': ([], 'merged'),
    'convert': (['--to', 'peft'], 'converted'),
    'export': ([], 'adapter.gguf'),
}


def _base(folder, dtypes):
    """A tiny Llama whose tensors have the dtypes that a function of their names tells."""
    config, weights, _, _ = golden('llama')
    return write_folder(folder, config, {n: v.astype(dtypes(n)) for n, v in weights.items()})


def _adapter(base, folder, size=1.0):
    model = peftjax.load(base)
    transform = peftjax.lora(rank=2, targets=r'.*q_proj')
    adapter, _ = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(adapter, seed=1, size=size)
    peftjax.save_adapter(folder, model, transform, adapter)
    return folder


def _merge(*line):
    return cli.main(['merge', *map(str, line)])


def _dtypes(folder):
    return {
        name: str(value.dtype) for name, value in load_file(folder / 'model.safetensors').items()
    }


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_merge_keeps_the_dtype_of_the_base(dtype, tmp_path):
    base = _base(tmp_path / 'base', lambda name: np.dtype(dtype))
    adapter = _adapter(base, tmp_path / 'adapter')
    assert _merge(base, adapter, tmp_path / 'out') == 0
    assert set(_dtypes(tmp_path / 'out').values()) == {dtype}
    assert json.loads((tmp_path / 'out/config.json').read_text())['dtype'] == dtype
    assert _merge(base, adapter, tmp_path / 'wide', '--dtype', 'float32') == 0
    # Merged in float32, and rounded once.
    exact, found = (load_file(tmp_path / f'{n}/model.safetensors') for n in ('wide', 'out'))
    for name, value in exact.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value.astype(np.dtype(dtype)), found[name], err_msg=name)


def test_each_tensor_keeps_its_own_dtype(tmp_path):
    def dtypes(name):
        return np.float32 if 'norm' in name else ml_dtypes.bfloat16

    base = _base(tmp_path / 'base', dtypes)
    assert _merge(base, _adapter(base, tmp_path / 'adapter'), tmp_path / 'out') == 0
    assert _dtypes(tmp_path / 'out') == _dtypes(base)
    assert json.loads((tmp_path / 'out/config.json').read_text())['dtype'] == 'bfloat16'


def test_numbers_that_the_dtype_of_the_base_does_not_hold_are_refused(tmp_path, capsys):
    base = _base(tmp_path / 'base', lambda name: np.float16)
    adapter = _adapter(base, tmp_path / 'adapter', size=1e4)
    assert _merge(base, adapter, tmp_path / 'out') == 2
    assert 'which float16 does not hold' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    assert _merge(base, adapter, tmp_path / 'out', '--dtype', 'bfloat16') == 0


HEADS = [
    ('tiny_bert_tokens', 'token_classification', r'.*/query', r'classifier/.*'),
    ('tiny_roberta_tokens', 'token_classification', r'.*/query', r'classifier/.*'),
    ('tiny_roberta', 'classification', r'.*/query', r'classifier/.*'),
    ('tiny_llama_tokens', 'token_classification', r'.*q_proj', r'score/.*'),
    ('tiny_gpt2_tokens', 'token_classification', r'.*c_attn', r'classifier/.*'),
    ('tiny_llama_score', 'classification', r'.*q_proj', r'score/.*'),
]


@pytest.mark.sampled
@pytest.mark.parametrize(('variant', 'task', 'targets', 'head'), HEADS)
def test_merge_keeps_the_head_of_the_base(variant, task, targets, head, tmp_path):
    base = GOLDEN / variant / 'base'
    model = peftjax.load(base, task=task)
    transform = peftjax.chain(peftjax.select(head), peftjax.lora(rank=2, targets=targets))
    adapter, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(adapter, seed=1)
    peftjax.save_adapter(tmp_path / 'adapter', model, transform, adapter)
    assert _merge(base, tmp_path / 'adapter', tmp_path / 'out') == 0
    merged = peftjax.load(tmp_path / 'out', task=task)
    inputs = arrays(base / 'inputs.npz')
    expected = peftjax.adapt(model, transform)(adapter, frozen, **inputs)
    found = merged.apply(merged.params, **inputs)
    if task == 'token_classification':
        real = inputs['attention_mask'] == 1
        found, expected = found[real], expected[real]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    said, saying = (json.loads((f / 'config.json').read_text()) for f in (base, tmp_path / 'out'))
    assert saying['architectures'] == said['architectures']


@pytest.mark.parametrize('flags', [(), ('--num-labels', 3)], ids=['found', 'told'])
def test_a_head_that_the_adapter_brings_is_named_in_the_config(flags, tmp_path):
    base = GOLDEN / 'tiny_llama' / 'base'
    adapter = GOLDEN / 'tiny_llama_tokens' / 'lora'
    assert _merge(base, adapter, tmp_path / 'out', *flags) == 0
    config = json.loads((tmp_path / 'out/config.json').read_text())
    assert config['architectures'] == ['LlamaForTokenClassification']
    assert list(config['id2label']) == ['0', '1', '2']
    found = peftjax.load(tmp_path / 'out', task='token_classification').params['score']['kernel']
    trained = load_file(adapter / 'adapter_model.safetensors')['base_model.model.score.weight']
    np.testing.assert_array_equal(found, trained.T)


@pytest.mark.parametrize(
    ('variant', 'task', 'pooling', 'named'),
    [
        # No class of another library reads the mean of all tokens, or has this head.
        ('tiny_bert', 'classification', 'mean', 'BertForSequenceClassification'),
        ('tiny_gemma3', 'token_classification', 'first', 'Gemma3ForCausalLM'),
        ('tiny_gemma3', 'classification', 'first', 'Gemma3TextForSequenceClassification'),
        ('tiny_gemma2', 'token_classification', 'first', 'Gemma2ForTokenClassification'),
        ('tiny_gpt2', 'classification', 'first', 'GPT2ForSequenceClassification'),
    ],
)
def test_a_checkpoint_names_the_class_that_computes_the_same(
    variant, task, pooling, named, tmp_path
):
    base = GOLDEN / variant / 'base'
    model = peftjax.load(base, task=task, num_labels=3, pooling=pooling)
    told = pytest.warns(UserWarning, match='with peftjax alone: ')
    with told if model.only_here else contextlib.nullcontext():
        peftjax.save_checkpoint(tmp_path / 'out', model, model.params, base)
    assert json.loads((tmp_path / 'out/config.json').read_text())['architectures'] == [named]


def test_a_checkpoint_keeps_the_names_of_its_classes(tmp_path):
    base = GOLDEN / 'tiny_bert' / 'base'
    model = peftjax.load(base, task='classification')
    labels = ('down', 'flat', 'up')
    peftjax.save_checkpoint(tmp_path / 'out', model, model.params, base, labels=labels)
    config = json.loads((tmp_path / 'out/config.json').read_text())
    assert config['id2label'] == {'0': 'down', '1': 'flat', '2': 'up'}
    assert config['label2id'] == {'down': 0, 'flat': 1, 'up': 2}
    with pytest.raises(ValueError, match='names 2 classes, but the head has 3'):
        peftjax.save_checkpoint(tmp_path / 'b', model, model.params, base, labels=labels[:2])


@pytest.mark.parametrize('pooling', ['first', 'mean'])
def test_merge_of_an_encoder_without_a_head(pooling, tmp_path):
    config, weights, inputs, _ = golden('bert')
    kept = {n: v for n, v in weights.items() if not n.startswith('classifier')}
    if pooling == 'mean':
        kept = {n: v for n, v in kept.items() if 'pooler' not in n}
    base = write_folder(tmp_path / 'base', {**config, 'architectures': ['BertModel']}, kept)
    model = peftjax.load(base, pooling=pooling)
    transform = peftjax.lora(rank=2, targets=r'.*/query')
    adapter, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(adapter, seed=1)
    peftjax.save_adapter(tmp_path / 'adapter', model, transform, adapter)
    line = (base, tmp_path / 'adapter', tmp_path / 'out', '--pooling', pooling)
    assert _merge(*line) == 0
    merged = peftjax.load(tmp_path / 'out', pooling=pooling)
    expected = peftjax.adapt(model, transform)(adapter, frozen, **inputs)
    found = merged.apply(merged.params, **inputs)
    np.testing.assert_allclose(found.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5)


def test_merge_with_new_tokens_and_an_untied_head(tmp_path):
    tied = GOLDEN / 'tiny_llama_tied' / 'base'
    adapter = GOLDEN / 'new_tokens/tiny_llama_tied/rows'
    line = (tied, adapter, tmp_path / 'out', '--vocab-size', 36, '--untie')
    assert _merge(*line) == 0
    found = peftjax.load(tmp_path / 'out')
    assert found.config.vocab_size == 36 and not found.config.tie_word_embeddings
    rows = load_file(adapter / 'adapter_model.safetensors')
    trained = next(value for name, value in rows.items() if name.endswith('tokens_delta'))
    np.testing.assert_array_equal(found.params['embed_tokens']['embedding'][32:], trained)


def test_generate_writes_with_new_tokens(tmp_path, capsys):
    base = tiny_runs.checkpoint(tmp_path / 'base', 'tiny_llama_tied')
    adapter = GOLDEN / 'new_tokens/tiny_llama_tied/rows'
    line = ['generate', str(base), '--adapter', str(adapter), '--prompt', 'fine film']
    line += ['--max-new-tokens', '3']
    assert cli.main(line) == 2
    capsys.readouterr()
    assert cli.main([*line, '--vocab-size', '36']) == 0
    assert capsys.readouterr().out.startswith('fine film')


def _line(command, base, out):
    flags, _ = COMMANDS[command]
    return [command, str(base), str(LORA), str(out), *flags]


@pytest.mark.parametrize('command', COMMANDS)
def test_what_is_there_is_not_written_over_unasked(command, tmp_path, capsys):
    out = tmp_path / COMMANDS[command][1]
    if out.suffix:
        out.write_text('mine')
    else:
        out.mkdir()
        (out / 'notes.txt').write_text('mine')
    assert cli.main(_line(command, LLAMA, out)) == 2
    said = capsys.readouterr().err
    assert '--force' in said and str(out) in said
    held = out if out.suffix else out / 'notes.txt'
    assert held.read_text() == 'mine' and (out.suffix or len(list(out.iterdir())) == 1)
    assert cli.main([*_line(command, LLAMA, out), '--force']) == 0
    if out.suffix:
        assert out.read_bytes()[:4] == b'GGUF'
    else:
        assert held.read_text() == 'mine' and len(list(out.iterdir())) > 1


@pytest.mark.parametrize('command', ['merge', 'convert'])
def test_the_input_is_replaced_when_asked_to_alone(command, tmp_path, capsys):
    base = _base(tmp_path / 'base', lambda name: np.float32)
    out = base if command == 'merge' else _adapter(base, tmp_path / 'adapter')
    line = [command, str(base), str(out if command == 'convert' else LORA), str(out)]
    line += COMMANDS[command][0]
    if command == 'merge':
        line[2] = str(_adapter(base, tmp_path / 'adapter'))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert cli.main(line) == 2 and '--force' in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert cli.main([*line, '--force']) == 0
    changed = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(changed) == set(before)
    weights = 'model.safetensors' if command == 'merge' else 'adapter_model.safetensors'
    assert (changed[weights] != before[weights]) == (command == 'merge')


@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize('there', [False, True], ids=['new', 'older'])
def test_an_interrupted_command_leaves_the_target_as_it_was(command, there, tmp_path, monkeypatch):
    out = tmp_path / COMMANDS[command][1]
    line = [*_line(command, LLAMA, out), '--force']
    if there:
        assert cli.main(line) == 0

    def state():
        files = [out] if out.is_file() else sorted(out.rglob('*')) if out.exists() else []
        return {str(path): path.read_bytes() for path in files}

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    before = state()
    # The last step before the new version takes the target's place.
    monkeypatch.setattr(whole, 'flush', interrupted)
    assert cli.main(line) == 130
    assert state() == before and bool(before) == there
    assert {path.name for path in tmp_path.iterdir()} <= {pathlib.Path(out).name}


def test_a_classifier_does_not_write_text(tmp_path, capsys):
    config, weights, _, _ = golden('llama_score')
    folder = write_folder(tmp_path, config, weights)
    assert cli.main(['generate', str(folder), '--prompt', 'a']) == 2
    assert 'score.weight' in capsys.readouterr().err
    assert cli.main(['inspect', str(folder)]) == 0
    assert 'score/kernel' in capsys.readouterr().out
    assert cli.main(['plan', str(folder), '--method', 'lora(rank=2)', '--length', '8']) == 0
