"""GGUF files: the same model as the folder they were made from, or one clear error."""

import struct

import gguf
import jax
import numpy as np
import pytest
from gguf.gguf_writer import GGUFValue

from peftjax.interop.checkpoints.load import load
from peftjax.interop.errors import CheckpointError
from peftjax.interop.gguf.format import open_gguf, read_tensor
from peftjax.models.llama_config import parse_llama
from tests.checkpoint_files import (
    SMOLLM2,
    cuts,
    golden,
    load_abstract,
    pretrained,
    require_package,
    write_folder,
    write_gguf,
)


@pytest.mark.parametrize(('variant', 'architecture'), [('llama', 'llama'), ('qwen2', 'qwen2')])
def test_gguf_gives_the_same_parameters(variant, architecture, tmp_path):
    config, weights, _, _ = golden(variant)
    expected = load(write_folder(tmp_path / 'folder', config, weights))
    path = write_gguf(tmp_path / 'model.gguf', config, weights, architecture)
    model = load(path)
    assert model.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)


def test_gguf_rope_divisors_become_the_config(tmp_path):
    config, weights, inputs, expected = golden('llama3_rope')
    rope = parse_llama(config).rope
    plain = {'rope_parameters': {'rope_theta': rope.theta, 'rope_type': 'default'}}
    base = parse_llama(config | plain).rope.frequencies(8)
    path = tmp_path / 'model.gguf'
    divisors = (base / rope.frequencies(8)).astype(np.float32)

    def add_divisors(writer):
        writer.add_key_length(8)
        writer.add_tensor('rope_freqs.weight', divisors)

    write_gguf(path, config, weights, extend=add_divisors)
    model = load(path)
    assert model.config.rope.kind == 'divisors'
    logits, tokens = model.apply(model.params, **inputs), inputs['attention_mask'] == 1
    np.testing.assert_allclose(logits[tokens], expected[tokens], atol=1e-5)


@pytest.mark.parametrize('kind', ['Q4_0', 'Q8_0', 'F16'])
def test_gguf_blocks_are_dequantised(kind, tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[kind]
    stored = gguf.quantize(values, kind)
    writer = gguf.GGUFWriter(tmp_path / 'x.gguf', 'llama')
    writer.add_tensor('x', stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_tensor(open_gguf(tmp_path / 'x.gguf'), 'x')
    np.testing.assert_array_equal(read, gguf.dequantize(stored, kind))
    np.testing.assert_allclose(read, values, atol=0.4)


def test_smollm2_tokenizer_equals_transformers():
    tokenizer = load(require_package(SMOLLM2), abstract=True).tokenizer
    file = pretrained('smollm2')
    rows = zip(file['texts'], file['input_ids'], file['attention_mask'], strict=True)
    for text, ids, mask in rows:
        assert tokenizer.encode(str(text)) == ids[mask == 1].tolist()
        assert tokenizer.decode(ids[mask == 1], skip_special_tokens=False) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert '<|im_start|>' in tokenizer.chat_template


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('tokenizer.ggml.model', 'llama', "model 'llama' with pre 'smollm' is not supported"),
        ('tokenizer.ggml.pre', 'tekken', "with pre 'tekken' is not supported"),
        ('tokenizer.ggml.merges', ['a z'], "merge 'a z' is not in the vocabulary"),
        ('tokenizer.ggml.tokens', ['a', 'a'], '2 tokens, 1 different, 32 types'),
    ],
)
def test_gguf_tokenizers_that_cannot_be_built_are_refused(key, value, message, tmp_path):
    config, weights, _, _ = golden('llama')

    def overwrite(writer):
        kind = gguf.GGUFValueType.ARRAY if isinstance(value, list) else gguf.GGUFValueType.STRING
        writer.kv_data[0][key] = GGUFValue(value, kind)

    path = write_gguf(tmp_path / 'model.gguf', config, weights, extend=overwrite)
    with pytest.raises(CheckpointError, match=message):
        load_abstract(path)


def test_gguf_cut_anywhere_is_refused(tmp_path):
    config, weights, _, _ = golden('llama')
    path = write_gguf(tmp_path / 'model.gguf', config, weights)
    whole = path.read_bytes()
    for cut in cuts(len(whole), 3000):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r'model\.gguf'):
            open_gguf(path)


def test_damaged_headers_give_clear_errors_or_nothing(tmp_path):
    """Whatever byte of a header flips, reading ends, and ends in a ValueError if it fails."""
    config, weights, _, _ = golden('llama')
    folder = write_folder(tmp_path / 'llama', config, weights)
    files = {
        folder / 'model.safetensors': folder,
        write_gguf(tmp_path / 'model.gguf', config, weights): tmp_path / 'model.gguf',
    }
    generator, refused = np.random.default_rng(0), 0
    for path, source in files.items():
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[generator.integers(0, 1900)] = generator.integers(0, 256)
            path.write_bytes(damaged)
            try:
                load_abstract(source)
            except ValueError:
                refused += 1
        path.write_bytes(whole)
    assert refused > 60


@pytest.mark.parametrize(
    ('start', 'message'),
    [
        (b'', 'is empty'),
        (b'GGML' + bytes(40), 'does not begin with GGUF'),
        (b'GGUF' + struct.pack('<IQQ', 9, 0, 0), 'version 9 is not supported'),
        (b'GGUF' + struct.pack('<IQQ', 3, 0, 1 << 60), 'metadata pairs at byte 24 asks for'),
        (b'GGUF' + struct.pack('<IQQ', 3, 1 << 60, 0), 'tensors at byte 24 asks for'),
        (
            b'GGUF' + struct.pack('<IQQQ1sIIQ', 3, 0, 1, 1, b'k', 9, 0, 1 << 60),
            'k at byte 49 asks for 1152921504606846976 bytes or more, 0 are left',
        ),
        (b'GGUF' + struct.pack('<IQQQ1sIIQ', 3, 0, 1, 1, b'k', 9, 9, 5), 'array of arrays'),
        (b'GGUF' + struct.pack('<IQQQ1sI', 3, 0, 1, 1, b'k', 77), 'unknown type 77'),
        (
            b'GGUF' + struct.pack('<IQQQ1sIQ', 3, 1, 0, 1, b't', 9, 0) + bytes(8),
            'tensor t has 9 axes',
        ),
    ],
)
def test_gguf_headers_that_cannot_be_right_are_refused(start, message, tmp_path):
    path = tmp_path / 'model.gguf'
    path.write_bytes(start)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda n, v: None if n == 'blk.1.ffn_up.weight' else v, 'missing: blk.1.ffn_up.weight'),
        (
            lambda n, v: v[:, :8] if n == 'blk.1.ffn_up.weight' else v,
            r'wrong: blk.1.ffn_up.weight is F32 \[24, 8\]',
        ),
        (
            lambda n, v: v.astype(np.int32) if n == 'output_norm.weight' else v,
            'wrong: output_norm.weight is I32',
        ),
        (
            lambda n, v: v[:8] if n == 'blk.0.attn_q.weight' else v,
            r'asks for blk.0.attn_q.weight \[16, 16\]',
        ),
        (lambda n, v: None if n == 'token_embd.weight' else v, 'no tensor token_embd.weight'),
    ],
)
def test_gguf_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    config, weights, _, _ = golden('llama')
    path = write_gguf(tmp_path / 'model.gguf', config, weights, change=change)
    with pytest.raises(CheckpointError, match=message):
        load_abstract(path)


def test_another_gguf_architecture_is_refused(tmp_path):
    config, weights, _, _ = golden('llama')
    path = write_gguf(tmp_path / 'model.gguf', config, weights, architecture='falcon')
    with pytest.raises(CheckpointError, match="general.architecture 'falcon' is not supported"):
        load_abstract(path)
