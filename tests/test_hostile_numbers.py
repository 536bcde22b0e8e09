"""Numbers, sizes and texts in the files of others that nothing must be done with."""

import json
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import cli
from peftjax.interop.errors import CheckpointError, readable
from peftjax.interop.files import finite
from peftjax.interop.files.bounded_json import parse, read_object
from tests import tiny_runs
from tests.checkpoint_files import golden, write_gguf

TARGETS = r'layers_\d+/self_attn/(q|v)_proj'


@pytest.fixture
def base(tmp_path):
    return tiny_runs.checkpoint(tmp_path / 'base', 'tiny_llama')


@pytest.fixture
def adapter(base, tmp_path):
    model = peftjax.load(base, scan=False)
    transform = peftjax.lora(rank=2, targets=TARGETS)
    trained, frozen = transform.init(jax.random.key(0), model)
    peftjax.save_adapter(tmp_path / 'adapter', model, transform, trained, base_model='x')
    peftjax.save(tmp_path / 'saved', model, transform, trained, frozen)
    return tmp_path / 'adapter'


def _set(file, value):
    """Puts a number into the first tensor of a file; gives the tensor's name."""
    tensors = load_file(file)
    name = min(tensors)
    changed = tensors[name].copy()
    changed.flat[-1] = value
    save_file({**tensors, name: changed}, file)
    return name


@pytest.mark.parametrize(
    ('value', 'told'), [(np.nan, '1 numbers are NaN and 0 infinite'), (-np.inf, '1 infinite')]
)
def test_weights_that_are_not_finite_are_refused_by_name(base, adapter, value, told):
    model = peftjax.load(base, scan=False)
    name = _set(adapter / 'adapter_model.safetensors', value)
    with pytest.raises(CheckpointError, match=f'{name} .*is not finite: .*{told}'):
        peftjax.load_adapter(adapter, model)
    peftjax.load_adapter(adapter, model, allow_non_finite=True)
    name = _set(base / 'model.safetensors', value)
    ways: list[dict[str, Any]] = [{}, {'quantize': 'int8'}, {'dtype': jnp.bfloat16}]
    for options in ways:
        with pytest.raises(CheckpointError, match=f'{name.removeprefix("model.")} .*not finite'):
            peftjax.load(base, **options)
    assert peftjax.load(base, allow_non_finite=True).params


def test_a_save_that_is_not_finite_is_refused_by_name(tmp_path):
    mlp = peftjax.testing.tiny_mlp()
    transform = peftjax.lora(rank=2, targets=r'hidden', init='pissa')
    trained, frozen = transform.init(jax.random.key(0), mlp)
    trained = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), trained)
    peftjax.save(tmp_path, mlp, transform, trained, frozen)
    with pytest.raises(CheckpointError, match=r'hidden/kernel/a .*not finite'):
        peftjax.restore(tmp_path, mlp)
    assert peftjax.restore(tmp_path, mlp, allow_non_finite=True).transform.about


def test_numbers_that_a_dtype_does_not_hold_are_refused(base):
    name = _set(base / 'model.safetensors', 1e6)
    with pytest.raises(
        CheckpointError, match=rf'{name.removeprefix("model.")} .*1e\+06, which float16'
    ):
        peftjax.load(base, dtype=jnp.float16)
    peftjax.load(base, dtype=jnp.bfloat16)


@given(
    st.sampled_from(['float64', 'float32', 'float16', 'bfloat16', 'float8_e4m3fn', 'int32']),
    st.lists(st.floats(width=16), max_size=9),
)
def test_finite_is_what_numpy_calls_finite(dtype, numbers):
    whole = [number if np.isfinite(number) or 'int' not in dtype else 0 for number in numbers]
    with np.errstate(all='ignore'):
        values = np.asarray(whole, np.float64).astype(jnp.dtype(dtype))
    assert finite.is_finite(values) == bool(np.isfinite(values.astype(np.float64)).all())


def _config(base, **fields):
    file = base / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize('weights', [True, False])
@pytest.mark.parametrize(
    ('field', 'value'),
    [
        *(('vocab_size', 10**12), ('vocab_size', 2**64), ('head_dim', 2**33), ('head_dim', 2**25)),
        *(('hidden_size', 2**70), ('num_attention_heads', 2**33), ('intermediate_size', 2**64)),
        *(
            ('max_position_embeddings', 2**70),
            ('num_hidden_layers', 10**6),
            ('rms_norm_eps', 1e999),
        ),
        ('rms_norm_eps', float('nan')),
    ],
)
def test_sizes_that_no_model_has_are_named(base, weights, field, value):
    _config(base, **{field: value})
    if not weights:
        (base / 'model.safetensors').unlink()
    with pytest.raises(CheckpointError, match=r'config\.json'):
        peftjax.load(base, abstract=not weights)


@pytest.mark.parametrize('field', ['hidden_size', 'intermediate_size', 'head_dim', 'vocab_size'])
def test_sizes_are_compared_with_the_file_before_they_are_used(base, field):
    _config(base, **{field: 2**20})
    with pytest.raises(
        CheckpointError, match=rf'config says {field} is 1048576, but the files hold'
    ):
        peftjax.load(base)


DEEP = '[' * 200_000 + ']' * 200_000


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('{"a":' + DEEP + '}', 'more than 200000 lists|nested too deeply'),
        ('{"a":' + '[' * 90 + ']' * 90 + '}', 'nested too deeply'),
        ('{"a":' + '[' * 50_000, 'nested too deeply|is not JSON'),
        ('{"a":' + '9' * 5000 + '}', 'a number of 5000 digits'),
        ('{"a":1e999}', 'too large a number'),
        ('{"a":-Infinity}', 'not a number in JSON'),
        ('{"a":1,"a":2}', 'occurs twice'),
        (r'{"a":"\ud83d\ude00 \ud800"}', 'half of a character'),
        (r'{"\udfff":1}', 'half of a character'),
        ('{"a":' + '{},' * 200_001, 'more than 200000'),
        ('[]', 'holds a JSON list'),
        ('{', 'is not JSON'),
        ('{"a":"' + 'x' * 2**24 + '"}', 'more than 16777216'),
    ],
)
def test_json_beyond_the_bounds_is_named(base, adapter, text, told):
    model = peftjax.load(base, scan=False)
    for file, call in (
        (base / 'config.json', lambda: peftjax.load(base)),
        (base / 'tokenizer_config.json', lambda: peftjax.load(base)),
        (adapter / 'adapter_config.json', lambda: peftjax.load_adapter(adapter, model)),
    ):
        before = file.read_bytes() if file.exists() else b'{}'
        file.write_text(text)
        with pytest.raises(CheckpointError, match=rf'{file.name} .*({told})'):
            call()
        file.write_bytes(before)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_json_within_the_bounds_is_read_as_json_reads_it(value):
    assert parse(json.dumps(value)) == value
    assert parse(json.dumps(value, ensure_ascii=False)) == value


def test_scores_may_be_no_numbers(tmp_path):
    (tmp_path / 'result.json').write_text('{"loss": NaN}')
    assert np.isnan(read_object(tmp_path / 'result.json', finite=False)['loss'])


def _moved(path, change):
    """Changes the offset of the second tensor of a GGUF file of F32 tensors."""
    content = bytearray(path.read_bytes())
    place = content.index(b'blk.0.attn_norm.weight') + len(b'blk.0.attn_norm.weight') + 4 + 8 + 4
    [offset] = struct.unpack_from('<Q', content, place)
    struct.pack_into('<Q', content, place, change(offset))
    path.write_bytes(content)


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda offset: offset + 4, 'not at a multiple of general.alignment 32'),
        (lambda offset: 0, 'before the end of token_embd.weight|before the end of '),
        (lambda offset: offset + 64, 'before the end of blk.0.attn_norm.weight'),
        (lambda offset: 2**63, 'corrupt or truncated'),
    ],
)
def test_tensors_of_a_gguf_file_that_overlap_are_refused(tmp_path, change, told):
    config, weights, _, _ = golden('llama')
    path = write_gguf(tmp_path / 'model.gguf', config, weights)
    _moved(path, change)
    with pytest.raises(CheckpointError, match=told):
        peftjax.load(path)


def test_numbers_in_a_gguf_file_are_finite(tmp_path):
    config, weights, _, _ = golden('llama')
    path = write_gguf(tmp_path / 'a.gguf', config | {'rms_norm_eps': np.nan}, weights)
    with pytest.raises(CheckpointError, match=r'layer_norm_rms_epsilon is nan'):
        peftjax.load(path)

    def change(name, values):
        return values * np.float32(np.nan) if name == 'output_norm.weight' else values

    path = write_gguf(tmp_path / 'b.gguf', config, weights, change=change)
    with pytest.raises(CheckpointError, match=r'output_norm\.weight .*not finite'):
        peftjax.load(path)
    assert peftjax.load(path, allow_non_finite=True).params


def test_control_characters_of_files_do_not_reach_the_terminal(base, capsys):
    tensors = load_file(base / 'model.safetensors')
    save_file(
        {**tensors, 'a\x1b]0;pwn\x07\u202e': np.zeros(2, np.float32)}, base / 'model.safetensors'
    )
    with pytest.raises(CheckpointError) as error:
        peftjax.load(base)
    assert r'\x1b]0;pwn\x07\u202e' in str(error.value)
    assert cli.main(['inspect', str(base)]) == 2
    shown = capsys.readouterr().err
    assert '\x1b' not in shown and '\x07' not in shown and r'\x1b]0;pwn' in shown


@given(st.text())
def test_a_readable_text_has_no_control_characters_and_keeps_the_rest(text):
    shown = readable(text)
    assert all(each.isprintable() or each in '\n\t' or ord(each) >= 160 for each in shown)
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_an_error_is_no_longer_than_a_page():
    assert len(str(CheckpointError('a' * 10**7))) < 30_000


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        (['--seed', str(2**70)], 'no whole number from 0'),
        (['--max-new-tokens', '1000000000'], 'no whole number from 1 to 1000000'),
        (['--temperature', 'nan'], "'nan' is not allowed; write a finite number, 0 or more"),
        (['--temperature', 'inf'], 'write a finite number, 0 or more'),
        (['--top-p', '-1'], "'-1' is not allowed; write a finite number, 0 or more"),
        (['--top-k', '0'], 'no whole number from 1'),
    ],
)
def test_flags_that_are_no_numbers_are_refused(base, capsys, flags, told):
    assert cli.main(['generate', str(base), '--prompt', 'fine', *flags]) == 2
    assert told in capsys.readouterr().err


def test_half_of_a_character_is_no_prompt(base, capsys):
    assert cli.main(['generate', str(base), '--prompt', '\udcff', '--max-new-tokens', '2']) == 2
    assert r"'\udcff' is no text" in capsys.readouterr().err


def test_too_little_memory_is_a_line(base, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError('32 GiB')

    monkeypatch.setattr(peftjax, 'load', full)
    assert cli.main(['inspect', str(base)]) == 2
    assert capsys.readouterr().err == 'peftjax inspect: there is not enough memory: 32 GiB\n'


def test_weights_that_are_not_finite_can_be_looked_at(base, adapter, capsys):
    _set(adapter / 'adapter_model.safetensors', np.nan)
    assert cli.main(['merge', str(base), str(adapter), str(base.with_name('merged'))]) == 2
    assert 'is not finite' in capsys.readouterr().err and not base.with_name('merged').exists()
    look = ['inspect', str(base), '--adapter', str(adapter)]
    assert cli.main(look) == 2 and '--allow-non-finite' in capsys.readouterr().err
    assert cli.main([*look, '--allow-non-finite']) == 0


@pytest.mark.parametrize('number', [2**64, -1])
def test_an_end_that_is_no_token_is_refused(number, tmp_path):
    base = tiny_runs.checkpoint(tmp_path / 'base', 'tiny_bert')
    config = json.loads((base / 'config.json').read_text())
    (base / 'config.json').write_text(json.dumps({**config, 'eos_token_id': number}))
    with pytest.raises(CheckpointError, match='config.json: eos_token_id is'):
        peftjax.load(base)
